"""Fetch mermaid, which draws the site's diagrams, into the environment: one pinned file, so the site needs no network.

Without npm there is nothing to fetch it with, and the site shows the diagrams as text.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NAME = "mermaid.min.js"
VERSION = "12.3.0"
SHA256 = "336df803d87a38b70a01e736e666c8f7601d2ce42f5e47c8fafe5d721074b9a3"


def fetched() -> Path:
    """Where the file is, once it was fetched."""
    return Path(sys.prefix) / "share" / "distillkit-docs" / f"mermaid-{VERSION}" / NAME


def fetch() -> None:
    """Fetch the package with npm, and keep the one file of it that a page needs."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["npm", "pack", "--silent", f"mermaid@{VERSION}"], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
        with tarfile.open(Path(folder) / f"mermaid-{VERSION}.tgz") as package:
            file = package.extractfile(f"package/dist/{NAME}")
            content = file.read() if file else b""
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        sys.exit(
            f"mermaid {VERSION} is not the file that is pinned in docs/diagrams.py: SHA-256 {found}, not {SHA256}."
        )
    fetched().parent.mkdir(parents=True, exist_ok=True)
    fetched().write_bytes(content)


def main() -> None:
    """Fetch it if it is not there."""
    if fetched().exists():
        return
    if shutil.which("npm") is None:
        print("npm is not installed: the diagrams of the site are not drawn, their text is shown instead.")
        return
    fetch()


if __name__ == "__main__":
    main()
