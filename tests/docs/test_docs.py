"""The pages that the code writes, and a new user who follows the tutorial to the letter, in a fresh environment."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from distillkit.cli.plugins import KINDS
from distillkit.plugins.interfaces import ROLES
from support.paths import ROOT
from support.scripts import script

PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")


def ran(command: list[str] | str, cwd: Path, **environment: str) -> str:
    """What a command says on standard output; what goes wrong is shown whole."""
    clean = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "DISTILLKIT_HOME", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        command, cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, shell=isinstance(command, str)
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


# ------------------------------------------------------------------------------------------------- pages


def test_the_pages_and_the_public_surface_are_those_of_the_code() -> None:
    ran([sys.executable, "docs/generate.py", "--check"], ROOT)


@pytest.mark.parametrize(("kind", "most"), [("teacher", 15), ("mixer", 12), ("judge", 15)])
def test_the_tutorials_plugins_are_as_short_as_is_said(kind: str, most: int) -> None:
    code = re.search(rf"<!-- made: {kind} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert code is not None
    ast.parse(code[1])
    assert sum(bool(line.strip()) for line in code[1].splitlines()) <= most


# ------------------------------------------------------------------------------------------------- new packages


def test_a_plugin_of_every_role_can_be_begun() -> None:
    assert {f"{kind}s" for kind in KINDS} == ROLES.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_package_is_sound_and_its_tests_pass(kind: str, tmp_path: Path) -> None:
    import tomllib

    import distillkit.testing
    from distillkit.plugins.scaffold import create_package

    folder = create_package(f"My.{kind}_One", kind, tmp_path)
    module = f"distillkit_my_{kind}_one"
    assert folder.name == f"distillkit-my-{kind}-one"
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["distillkit"] == {f"my-{kind}-one": module}
    assert tomllib.loads((folder / "example.toml").read_text())["name"] == f"my-{kind}-one-example"
    assert not [file for file in folder.rglob("*") if file.is_file() and re.search(r"\$[a-z]", file.read_text())]
    (offered,) = getattr(script(folder / f"{module}.py"), f"register_{kind}s")()
    assert offered.name == f"my-{kind}-one"
    assert getattr(distillkit.testing, f"check_{kind}")(offered)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["3d", "--kind", "mixer"], "expected letters, digits and '-', beginning with a letter"),
        (["my mixer", "--kind", "mixer"], "For example: distillkit plugins new my-mixer --kind mixer"),
        (["a/../b", "--kind", "mixer"], "found the name 'a/../b'"),
        (["ünder", "--kind", "mixer"], "found the name 'ünder'"),
        (["-", "--kind", "mixer"], "found the name '-'"),
        (["distillkit-", "--kind", "mixer"], "found the name 'distillkit-'"),
        (["none", "--kind", "teacher"], "found the name 'none'"),
        (["hard", "--kind", "mixer"], "a mixer 'hard' exists already in distillkit"),
        (["plugins", "--kind", "mixer"], "a module distillkit_plugins already exists"),
        (["there", "--kind", "mixer"], "distillkit-there already exists"),
        (["x", "--kind", "loss"], "'loss' is not one of"),
        (["x"], "Missing option '--kind'"),
    ],
)
def test_a_name_that_cannot_be_is_refused(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from distillkit.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["distillkit", "plugins", "new", *words])
    Path("distillkit-there").mkdir()
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["distillkit-there"]


# ------------------------------------------------------------------------------------------------- a new user


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A new virtual environment with distillkit as a wheel, and pip; the variables of a shell in it.

    Fresh are the environment, distillkit, and the plugins that are installed later. What distillkit depends on, pytest
    and setuptools are those of the environment that runs the tests, found through a .pth file: pip holds the wheel's
    requirements against them, and downloads nothing.
    """
    folder = tmp_path_factory.mktemp("fresh")
    source, env = folder / "source", folder / "env"
    source.mkdir()
    for name in ("distillkit", "plugins", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    (source / "dist").mkdir()
    ran([sys.executable, "-c", build], source)
    ran([sys.executable, "-m", "venv", str(env)], folder)
    site = Path(
        ran([f"{env}/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder).strip()
    )
    (site / "borrowed.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    (wheel,) = (source / "dist").glob("*.whl")
    variables = {
        "PATH": f"{env}/bin:{os.environ['PATH']}",
        "PIP_NO_INDEX": "1",  # nothing is downloaded
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it so: no isolation, setuptools is there
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }
    ran(["pip", "uninstall", "--quiet", "--yes", "setuptools"], folder, **variables)  # Python 3.11 brings an old one
    ran(["pip", "install", "--quiet", str(wheel)], folder, **variables)
    borrowed = env / "bin" / "pytest"  # pip sees that pytest is there, and so makes no script for it
    borrowed.write_text(f'#!/bin/sh\nexec {env}/bin/python -m pytest "$@"\n')
    borrowed.chmod(0o755)
    shutil.rmtree(source)
    return variables


def snippets() -> list[tuple[str, str, str]]:
    """The page's blocks of code in order: the file that one is, or nothing; its language; its text."""
    return re.findall(r"(?:<!-- file: (\S+) -->\n)?```(\w+)\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_followed_to_the_letter(fresh: dict[str, str], tmp_path: Path) -> None:
    steps = ["set -e"]
    for file, language, text in snippets():
        if file:
            steps.append(f"cat > {tmp_path}/{file} <<'END'\n{text}END\n")
        elif language == "sh":
            steps.append(text)
    said = ran(["bash", "-c", "\n".join(steps)], tmp_path, **fresh)
    assert said.count("1 passed") == 4
    assert "teacher  hello" in said
    for name in ("hello", "focal", "length"):
        report = json.loads((tmp_path / f"distillkit-{name}/reports/{name}-example/1/report.json").read_text())
        assert report["status"] == "done"
    made = json.loads((tmp_path / "distillkit-length/reports/length-example/1/run.json").read_text())
    assert {"name": "distillkit-length", "version": "0.1.0"} in made["plugins"]
    assert "words" in made["judges"]["length"]


@pytest.mark.slow
def test_every_kind_of_new_package_installs_and_runs_outside_of_the_repository(
    fresh: dict[str, str], tmp_path: Path
) -> None:
    names = [f"try-{kind}" for kind in KINDS]
    for name, kind in zip(names, KINDS, strict=True):
        ran(["distillkit", "plugins", "new", name, "--kind", kind], tmp_path, **fresh)
    folders = [f"./distillkit-{name}" for name in names]
    ran(["pip", "install", "--quiet", *folders], tmp_path, **fresh)
    where = ran(["python", "-c", "import distillkit, sys; print(distillkit.__file__, sys.prefix)"], tmp_path, **fresh)
    file, prefix = where.split()
    assert file.startswith(prefix)
    rows = {row["name"]: row for row in json.loads(ran(["distillkit", "plugins", "--json"], tmp_path, **fresh))}
    for name, kind in zip(names, KINDS, strict=True):
        assert (rows[name]["role"], rows[name]["distribution"], rows[name]["status"]) == (
            kind,
            f"distillkit-{name}",
            "ok",
        )
        ran(["distillkit", "recipe", "check", f"distillkit-{name}/example.toml"], tmp_path, **fresh)
    ran(["pytest", "-q", *folders, "--import-mode=importlib"], tmp_path, **fresh)
    ran(["distillkit", "run", "distillkit-try-teacher/example.toml"], tmp_path, **fresh)
    report = json.loads((tmp_path / "reports/try-teacher-example/1/report.json").read_text())
    assert report["status"] == "done"
    assert report["teacher"]["provider"] == "try-teacher"
