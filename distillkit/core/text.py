"""Makes text safe to print: control characters, directional marks and invalid characters are escaped.

Answers, samples, files and plugins may contain any character, so all output goes through these functions.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

# Joiners are format characters too, but scripts and emoji need them, and they do not move the cursor.
ALLOWED = "\n\t\u200c\u200d"
UNSAFE_CATEGORIES = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(value: Any) -> str:
    """The value as text, with unsafe characters escaped as in `\\u0007`."""
    return "\n".join(row if row.isprintable() else "".join(map(_escape, row)) for row in str(value).split("\n"))


def one_line(value: Any) -> str:
    """Printable text on one line."""
    return printable(" ".join(str(value).split()))


def escape_json(text: str) -> str:
    """JSON text with unsafe characters written as JSON escapes."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(json.dumps(letter)[1:-1] if _is_unsafe(letter) else letter for letter in text)


def _escape(letter: str) -> str:
    escaped = f"\\u{ord(letter):04x}" if letter <= "\uffff" else f"\\U{ord(letter):08x}"
    return escaped if _is_unsafe(letter) else letter


def _is_unsafe(letter: str) -> bool:
    return letter not in ALLOWED and unicodedata.category(letter) in UNSAFE_CATEGORIES
