"""Answers of teachers, kept on disk."""
