"""Soft targets: alignment of tokenizers, and their store."""
