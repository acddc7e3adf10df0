"""Downloads mermaid, which draws the diagrams of the documentation site, as one pinned file into the environment.

The site then needs no network. Without npm the download is skipped, and the site shows the diagrams as text.
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


def mermaid_path() -> Path:
    """The path of the downloaded file."""
    return Path(sys.prefix) / "share" / "distillkit-docs" / f"mermaid-{VERSION}" / NAME


def download() -> None:
    """Download the package with npm and keep the one file that pages need. Exits if its hash is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            ["npm", "pack", "--silent", f"mermaid@{VERSION}"], cwd=folder, check=True, stdout=subprocess.DEVNULL
        )
        with tarfile.open(Path(folder) / f"mermaid-{VERSION}.tgz") as package:
            file = package.extractfile(f"package/dist/{NAME}")
            content = file.read() if file else b""
    found = hashlib.sha256(content).hexdigest()
    if found != SHA256:
        sys.exit(f"mermaid {VERSION} does not match the hash in docs/diagrams.py: SHA-256 {found}, expected {SHA256}.")
    mermaid_path().parent.mkdir(parents=True, exist_ok=True)
    mermaid_path().write_bytes(content)


def main() -> None:
    """Download the file if it is missing."""
    if mermaid_path().exists():
        return
    if shutil.which("npm") is None:
        print("npm is not installed: the site will show diagrams as text.")
        return
    download()


if __name__ == "__main__":
    main()
