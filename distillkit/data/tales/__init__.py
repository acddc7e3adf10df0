"""A generator of small stories: a corpus that needs no API key and no download."""

from .generator import story

__all__ = ["story"]
