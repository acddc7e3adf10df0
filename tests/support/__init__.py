"""Fakes and fixtures that several tests share: servers, recipes, students, run folders and processes."""
