"""The notebooks of the guide: what is stored in them is fit to be shown, and they run from a fresh start."""

from __future__ import annotations

import copy
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from support.paths import ROOT
from support.scripts import script

HERE = ROOT / "docs" / "notebooks"
FILES = sorted(HERE.glob("[0-9]_*.ipynb"))
LONGEST = 180.0  # seconds
Notebook = dict[str, Any]


RUN = script("docs/notebooks/run.py")


def test_they_are_numbered_in_the_order_of_reading():
    assert [int(file.name[0]) for file in FILES] == list(range(1, len(FILES) + 1))
    assert RUN.files([]) == FILES
    assert RUN.files(["2_model", "docs/notebooks/1_tokenization.ipynb"]) == FILES[:2]
    with pytest.raises(SystemExit, match="there is no notebook 7_nothing; there are 1_tokenization"):
        RUN.files(["7_nothing"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_is_stored_is_fit_to_be_shown(file: Path):
    notebook = json.loads(file.read_text(encoding="utf-8"))
    assert list(RUN.faults(notebook)) == []
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert sum(bool(cell["outputs"]) for cell in cells) > len(cells) / 2
    shown = {kind for cell in cells for output in cell["outputs"] for kind in output.get("data", {})}
    assert shown & {"image/png", "image/svg+xml"}
    assert file.stat().st_size < 1_000_000


def shown(text: str) -> Notebook:
    """A notebook with one cell that printed a text."""
    output = {"output_type": "stream", "name": "stdout", "text": text}
    return {"cells": [{"cell_type": "code", "execution_count": 1, "outputs": [output]}]}


@pytest.mark.parametrize(
    "place", ["/home/" + "me/x", "/Users/" + "me/x", "/tmp/a", "see file:///root/x", "('/var/lib/y',)"]
)
def test_a_place_on_a_machine_is_found(place: str):
    (fault,) = RUN.faults(shown(f"reports at {place}\n"))
    assert fault.startswith("cell 1 shows /")


@pytest.mark.parametrize("text", ["reports/quickstart/1", "and/or/opt/x", "</var>", "https://a.example/home/x", "1/2"])
def test_what_is_no_place_is_left_alone(text: str):
    assert list(RUN.faults(shown(text))) == []


def test_errors_and_cells_out_of_order_are_found():
    fine = shown("well")
    failed, again = copy.deepcopy(fine), copy.deepcopy(fine)
    failed["cells"][0]["outputs"] = [{"output_type": "error", "ename": "KeyError", "evalue": "'x'", "traceback": []}]
    again["cells"][0]["execution_count"] = 2
    assert list(RUN.faults(failed)) == ["cell 1 ends in KeyError: 'x'"]
    assert list(RUN.faults(again)) == ["the cells were not run one after another from a fresh start: [2]"]


def written(folder: Path, *sources: str) -> Path:
    """A notebook that was never run."""
    cells = [
        {"cell_type": "code", "id": str(i), "metadata": {}, "execution_count": None, "outputs": [], "source": source}
        for i, source in enumerate(sources)
    ]
    file = folder / "1_made.ipynb"
    file.write_text(json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))
    return file


@pytest.mark.slow
def test_a_kernel_and_a_folder_of_their_own(
    peer: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    peer("nbclient")
    peer("ipykernel")
    monkeypatch.setenv("DISTILLKIT_HOME", "/elsewhere")
    monkeypatch.setenv("DISTILLKIT_API_KEY", "not for notebooks")
    home = "import os, pathlib; home = pathlib.Path(os.environ['DISTILLKIT_HOME'])"
    tell = (
        "print(home.samefile('.'), list(home.iterdir()), [key for key in os.environ if key.startswith('DISTILLKIT_')])"
    )
    file = written(tmp_path, home, tell)
    assert RUN._done(file, keep=True)
    kept = json.loads(file.read_text())
    assert kept["cells"][1]["outputs"][0]["text"] == ["True [] ['DISTILLKIT_HOME']\n"]
    before = written(tmp_path, "print(__import__('os').getcwd())").read_text()
    assert not RUN._done(file, keep=True)
    assert file.read_text() == before
    assert not RUN._done(written(tmp_path, "1 / 0"), keep=True)


def processor() -> float:
    """The seconds that programs of this one have used so far, of any core."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_they_run(peer: Callable[[str], ModuleType], file: Path):
    peer("nbclient")
    peer("ipykernel")
    before, used = file.read_bytes(), processor()
    done = subprocess.run([sys.executable, str(HERE / "run.py"), "--check", file.stem], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{file.stem}: ")
    assert file.read_bytes() == before
    assert processor() - used < 2 * LONGEST  # what two cores do in that time, however busy they are
