"""Text that only stands there: whatever would move a cursor, turn a line around or be no character is spelt out.

What teachers, students, files and plugins say may hold anything, so all that is shown to people goes through here.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

# Joiners are format characters too, but scripts and emoji need them, and they move nothing.
HARMLESS = "\n\t\u200c\u200d"
ODD = ("Cc", "Cf", "Cs", "Zl", "Zp")


def printable(value: Any) -> str:
    """Text in which every odd character is spelt out."""
    return "\n".join(row if row.isprintable() else "".join(map(_visible, row)) for row in str(value).split("\n"))


def one_line(value: Any) -> str:
    """Clean text on one line."""
    return printable(" ".join(str(value).split()))


def escape_json(text: str) -> str:
    """The same JSON, its odd characters written as JSON escapes them."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(json.dumps(letter)[1:-1] if _is_odd(letter) else letter for letter in text)


def _visible(letter: str) -> str:
    spelt = f"\\u{ord(letter):04x}" if letter <= "\uffff" else f"\\U{ord(letter):08x}"
    return spelt if _is_odd(letter) else letter


def _is_odd(letter: str) -> bool:
    return letter not in HARMLESS and unicodedata.category(letter) in ODD
