"""Grades to tables and pages, from what the run folder holds."""
