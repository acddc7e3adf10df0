"""Fail when a tracked file holds what looks like a key, a private path or the name of a package registry's host."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PATTERNS = {
    "a Groq key": rb"gsk_[A-Za-z0-9]{20,}",
    "an OpenAI key": rb"sk-[A-Za-z0-9_-]{20,}",
    "an AWS key": rb"AKIA[0-9A-Z]{16}",
    "a Hugging Face token": rb"hf_[A-Za-z]{30,}",
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE " + rb"KEY-----",
    "a registry's host": rb"https?://[a-z0-9.-]*(py" + rb"pi|python" + rb"hosted|npm" + rb"js)\.",
    "a home folder": rb"/(home|Users)/[a-z][a-z0-9_-]+/",
}


def main() -> None:
    """Look through what git tracks."""
    names = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True).stdout.split(b"\0")
    found = []
    for name in filter(None, names):
        path = Path(name.decode())
        content = path.read_bytes() if path.is_file() else b""
        found += [f"{path}: {what}" for what, pattern in PATTERNS.items() if re.search(pattern, content)]
    if found:
        sys.exit("\n".join(["These must not be committed:", *found]))


if __name__ == "__main__":
    main()
