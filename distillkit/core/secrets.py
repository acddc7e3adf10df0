"""Detects and redacts text that looks like an API key or another secret.

Knows the formats of keys, not the keys themselves: `teachers.client.api_keys` reads those.
"""

from __future__ import annotations

import re

REDACTED = "[key]"
ADVICE = (
    "Recipes are stored with every run, so this key is no longer secret: revoke it and create a new one. Keys are read "
    "from the environment or from .env (see .env.example)."
)

_PATTERNS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"(?<=://)[^/\s:@\[\]]*:[^/\s@]+(?=@)",
    "a key in an address": r"(?<=[?&])(?:api[-_]?key|key|(?:access[-_]?|auth[-_]?)?token|sig|signature)=[^&\s\"']{6,}",
    "a key in a header": r"\b(?:Bearer|Authorization:\s*Basic)\s+(?=\S*\d)[A-Za-z0-9._~+/=-]{12,}",
    "a Groq key": r"\bgsk_[A-Za-z0-9]{16,}",
    "an OpenAI or Anthropic key": r"\bsk-[A-Za-z0-9][A-Za-z0-9_-]{15,}",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "a Google key": r"\bAIza[A-Za-z0-9_-]{30,}",
    "an AWS key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a signed token": r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
}
_ANY = re.compile("|".join(f"(?P<k{i}>{pattern})" for i, pattern in enumerate(_PATTERNS.values())))
_SECRET_NAMES = re.compile(
    r"(?:[a-z0-9]+[-_])*?(?:api[-_]?key|api[-_]?token|access[-_]?key|access[-_]?token|auth[-_]?token|private[-_]?key"
    r"|secret[-_]?key|client[-_]?secret|authorization|passwo?r?d|passphrase)",
    re.IGNORECASE,
)


def find_secret(text: str) -> str | None:
    """The kind of secret that a text seems to contain, or None."""
    match = _ANY.search(text)
    return list(_PATTERNS)[int(str(match.lastgroup)[1:])] if match else None


def redact(text: str) -> str:
    """The text with everything that looks like a secret replaced."""
    return _ANY.sub(REDACTED, text)


def is_secret_name(word: str) -> bool:
    """Whether values under this name are secrets, whatever they look like."""
    return _SECRET_NAMES.fullmatch(word) is not None
