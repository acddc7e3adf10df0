"""API keys: from the environment, or else from `.env` in the working folder. And their redaction in texts.

A key is looked up when a client is created, and is stored nowhere else. Knows no provider: callers name the variable.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...core.errors import UsageError
from ...core.secrets import REDACTED

PLACEHOLDER_KEY = "none"  # for SDKs that require a key, if there is none
MIN_LENGTH = 8  # characters of a key. Shorter values ("EMPTY", "ollama") are words, and are not redacted


def find_key(variable: str) -> str | None:
    """The key in a variable, or None if it is not set."""
    value = (os.environ.get(variable) or read_dotenv(Path(".env")).get(variable) or "").strip()
    if value and not (value.isascii() and value.isprintable() and " " not in value):
        raise UsageError(
            f"{variable} contains characters that cannot be in a key", "Copy the key again, without quotes or spaces."
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
    """The text with every occurrence of the key replaced."""
    return text.replace(secret, REDACTED) if secret and len(secret) >= MIN_LENGTH and secret in text else text


def parse_json(text: str, secret: str | None) -> Any:
    """The value of a JSON text, with the key redacted, even if the text writes it with escape sequences."""
    value = json.loads(redact(text, secret))
    return _redact_value(value, secret) if "\\/" in text or "\\u00" in text else value


def _redact_value(value: Any, secret: str | None) -> Any:
    if isinstance(value, str):
        return redact(value, secret)
    if isinstance(value, list):
        return [_redact_value(item, secret) for item in value]
    if isinstance(value, dict):
        return {redact(key, secret): _redact_value(item, secret) for key, item in value.items()}
    return value
