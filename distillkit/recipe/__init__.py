"""Recipes: their schema, their files, and the messages about what is wrong in them."""
