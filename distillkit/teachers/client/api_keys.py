"""Keys of providers: from the environment, or from `.env` in the working folder. The environment wins.

A key is looked up when a client is made, and put nowhere else. Knows no provider: who needs a key names its variable.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...core.errors import UsageError
from ...core.secrets import REDACTED

PLACEHOLDER_KEY = "none"  # what an SDK is given that insists on a key, where there is none
SHORTEST = 8  # letters of a key; what is shorter ("EMPTY", "ollama") is a word, and stays in what a teacher says


def find_key(variable: str) -> str | None:
    """The key in a variable, or None where there is none."""
    value = (os.environ.get(variable) or read_dotenv(Path(".env")).get(variable) or "").strip()
    if value and not (value.isascii() and value.isprintable() and " " not in value):
        raise UsageError(
            f"{variable} holds characters that no key has", "Copy the key again, without quotes or spaces."
        )
    return value or None


def read_dotenv(path: Path) -> dict[str, str]:
    """The variables of a `.env` file: NAME=value lines, with or without quotes and `export`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.absolute()} cannot be read: {type(error).__name__}") from None
    pairs = (line.removeprefix("export ").partition("=") for line in map(str.strip, lines) if line[:1] != "#")
    return {name.strip(): value.strip().strip("\"'") for name, _, value in pairs if value}


def redact(text: str, secret: str | None) -> str:
    """A text in which a key does not appear, whoever put it there."""
    return text.replace(secret, REDACTED) if secret and len(secret) >= SHORTEST and secret in text else text


def parse_json(text: str, secret: str | None) -> Any:
    """The value of a JSON text, without the key, however its letters are written there."""
    value = json.loads(redact(text, secret))
    return _without(value, secret) if "\\/" in text or "\\u00" in text else value


def _without(value: Any, secret: str | None) -> Any:
    if isinstance(value, str):
        return redact(value, secret)
    if isinstance(value, list):
        return [_without(item, secret) for item in value]
    if isinstance(value, dict):
        return {redact(key, secret): _without(item, secret) for key, item in value.items()}
    return value
