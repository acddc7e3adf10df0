"""Generating and scoring text with a student."""
