"""Requests to teachers: policy, retries, rate limits, scheduling, the Batch API."""
