"""Asking teachers: requests, limits, retries, batches."""
