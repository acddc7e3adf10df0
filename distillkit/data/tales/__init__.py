"""Small stories from a seed: a corpus for readers with no key and no download."""

from .generator import story

__all__ = ["story"]
