"""The student's network."""
