"""Execute the notebooks of the guide and keep what they show; with `--check` they are executed and nothing is kept.

    python docs/notebooks/run.py [--check] [NAME ...]      one is enough: 1_tokenization; without a name all of them

Each has a kernel of its own, and an empty folder that is its current one and its DISTILLKIT_HOME. A notebook is kept
only if no cell failed and nothing that it shows names a place on this machine. Knows nothing of what is in them.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
LIMIT = 600  # seconds of one cell; a guard against one that hangs
PLACES = re.compile(r"(?<![\w.<])/(?:home|Users|root|tmp|var|private|opt|usr|mnt|workspace)/[\w.~-]+")


def main() -> None:
    """Execute those that are named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="1_tokenization, say; all if none is named")
    parser.add_argument("--check", action="store_true", help="keep nothing")
    chosen = parser.parse_args()
    failed = [file.stem for file in files(chosen.names) if not _done(file, keep=not chosen.check)]
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def files(names: list[str]) -> list[Path]:
    """The notebooks that are meant, in the order of reading."""
    there = sorted(HERE.glob("[0-9]_*.ipynb"))
    if strangers := {Path(name).stem for name in names} - {file.stem for file in there}:
        sys.exit(f"there is no notebook {', '.join(strangers)}; there are {', '.join(file.stem for file in there)}")
    return [file for file in there if not names or file.stem in {Path(name).stem for name in names}]


def _done(file: Path, keep: bool) -> bool:
    """Whether a notebook went well."""
    import nbformat
    from nbclient.exceptions import CellExecutionError, CellTimeoutError

    notebook, begun = nbformat.read(file, as_version=4), time.perf_counter()
    try:
        execute(notebook)
    except (CellExecutionError, CellTimeoutError) as error:
        print(f"{file.stem}: {error}", file=sys.stderr)
        return False
    if found := list(faults(notebook)):
        print("\n".join([f"{file.stem}:", *found]), file=sys.stderr)
        return False
    if keep:
        nbformat.write(notebook, file)
    print(f"{file.stem}: {time.perf_counter() - begun:.0f} s")
    return True


def execute(notebook: NotebookNode) -> None:
    """Run every cell in a fresh kernel and a fresh folder; the outputs replace the former ones."""
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=LIMIT,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            extra_arguments=["--log-level=ERROR"],  # a kernel warns of its own loopback
            resources={"metadata": {"path": folder}},
        )
        client.execute(env=_environment(folder))
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata["language_info"] = {"name": "python"}  # the rest is of this machine's Python


def _environment(home: str) -> dict[str, str]:
    """This process's variables, but for those that would let one notebook see what is not its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("DISTILLKIT_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, "DISTILLKIT_HOME": home, "COLUMNS": "100"}


def faults(notebook: Mapping[str, Any]) -> Iterator[str]:
    """What a notebook must not show: an error, a cell that was not run or out of order, a place on a machine."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    counts = [cell["execution_count"] for cell in cells]
    if counts != list(range(1, len(cells) + 1)):
        yield f"the cells were not run one after another from a fresh start: {counts}"
    for cell in cells:
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                yield f"cell {cell['execution_count']} ends in {output['ename']}: {output['evalue']}"
            for text in _texts(output):
                yield from (f"cell {cell['execution_count']} shows {place[0]}" for place in PLACES.finditer(text))


def _texts(output: Mapping[str, Any]) -> Iterator[str]:
    """All of an output that can be read; pictures are letters, too, but say nothing."""
    shown = {"text/plain": output.get("text", ""), **output.get("data", {})}
    for kind, value in shown.items():
        if kind.startswith("text/") or kind == "image/svg+xml":
            yield value if isinstance(value, str) else "".join(value)


if __name__ == "__main__":
    main()
