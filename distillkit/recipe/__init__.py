"""Recipes: their schema, loading them from files, and error messages."""
