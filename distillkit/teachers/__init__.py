"""Prompts to answers, each kept on disk, and never asked twice."""
