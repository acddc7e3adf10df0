"""The store of teachers' answers, on disk."""
