"""Samples to grades: the student writes, judges say what they think of it."""
