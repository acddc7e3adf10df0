"""Takes a screenshot of a comparison page, after training the five small students that it compares (some minutes).

python docs/compare_picture.py docs/compare.png [FOLDER]

Runs that exist in FOLDER are reused. Needs Chromium, and Pillow, which matplotlib depends on.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from support.browser import Browser

WIDTH, HEIGHT = 1200, 1500

COMMON = """
[sampling]
count = 40
max_tokens = 64
[[judge]]
name = "perplexity"
[[judge]]
name = "diversity"
"""
STUDIES = {
    "alone": ("quickstart_alone", "[train]\nsteps = 150"),
    "alone_twice_as_long": ("quickstart_alone", "[train]\nsteps = 300"),
    "taught": ("quickstart", "[train]\nsteps = 150"),
    "taught_by_text_too": ("quickstart", "[train]\nsteps = 150\n[mixer]\nalpha = 0.7"),
    "taught_narrow": ("quickstart", "[train]\nsteps = 150\n[student]\nwidth = 64"),
}


def main(picture: Path, folder: Path) -> None:
    """Train, compare, and take the screenshot."""
    for name, (base, changes) in STUDIES.items():
        if not (folder / "reports" / name / "1" / "report.json").is_file():
            recipe = folder / f"{name}.toml"
            recipe.write_text(f'extends = "{base}"\nname = "{name}"\n{changes}\n{COMMON}', encoding="utf-8")
            distillkit(folder, "run", str(recipe), "--yes")
    page = folder / "compare.html"
    distillkit(folder, "compare", *STUDIES, "--html", str(page))
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        browser.look(WIDTH, HEIGHT)
        browser.open(page)
        browser.settle()
        browser.picture(folder / "compare.png", whole=False)
    shrink(folder / "compare.png", picture)


def distillkit(folder: Path, *words: str) -> None:
    """Run a distillkit command with the folder as DISTILLKIT_HOME."""
    environment = {**os.environ, "DISTILLKIT_HOME": str(folder)}
    subprocess.run([sys.executable, "-m", "distillkit", *words], check=True, env=environment)


def shrink(source: Path, picture: Path) -> None:
    """Save the picture as an optimized PNG."""
    from PIL import Image

    stream = io.BytesIO()
    Image.open(source).convert("RGB").save(stream, "PNG", optimize=True)
    picture.write_bytes(stream.getvalue())


if __name__ == "__main__":
    where = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    where.mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]), where.resolve())
