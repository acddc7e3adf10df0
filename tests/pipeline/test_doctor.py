"""`distillkit doctor`: what it reports, which problems it finds, and that each has its remedy."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from distillkit.cli.main import cli
from distillkit.core import cpu, filesystems
from distillkit.core.errors import UsageError
from distillkit.pipeline import doctor
from distillkit.student import blas
from distillkit.teachers.answers.disk import DiskAnswerStore
from support.chat_provider import Act, Provider, error, serving
from support.paths import ROOT

SECRET = "gsk-0123456789-secret"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, no keys, and a machine that is measured quickly."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTILLKIT_HOME", str(tmp_path))
    for variable in (*doctor.KEYS, "OPENBLAS_CORETYPE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(doctor, "SIZE", 64)
    monkeypatch.setattr(doctor, "_peak_gflops", lambda: None)
    return tmp_path


def examined(*words: str) -> tuple[dict[str, Any], int]:
    """The report, and the exit code."""
    result = CliRunner().invoke(cli, ["doctor", "--json", *words])
    assert result.exit_code in (0, 1), result.output
    return json.loads(result.stdout), result.exit_code


def problems(report: dict[str, Any], level: str) -> str:
    rows = [row for row in report["problems"] if row["level"] == level]
    assert all(row["remedy"] for row in rows)
    return "\n".join(row["what"] for row in rows)


def test_a_machine_in_order_has_no_errors_and_exits_with_0() -> None:
    report, code = examined()
    assert (code, report["ok"], problems(report, "error")) == (0, True, "")
    assert report["cpu"]["model"] == cpu.model()
    assert report["cpu"]["cores"] == report["mlx"]["streams"] == cpu.cores()
    assert report["blas"]["name"] == blas.load().name
    assert report["blas"]["kernel"] == (blas.load().kernel or None)
    assert report["mlx"]["gflops_per_core"] > 0
    assert all(row["fault"] is None for row in report["blas"]["candidates"])
    assert report["cache"] == {
        "folder": str(Path("cache/teachers").absolute()),
        "answers": 0,
        "bytes": 0,
        "state": "empty",
    }
    assert not Path("cache").exists()


def test_the_text_is_one_screen_with_every_section(monkeypatch: pytest.MonkeyPatch) -> None:
    text = CliRunner().invoke(cli, ["doctor"]).stdout
    for name in ("machine", "computing", "set-up", "optional", "processor", "BLAS", "answer cache", "GROQ_API_KEY"):
        assert name in text
    assert text.rstrip().endswith("A run would work here.")
    assert len(text.splitlines()) < 60
    assert max(map(len, text.splitlines())) <= 100


def test_keys_are_named_with_their_place_and_never_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / ".env").write_text(f"OPENAI_API_KEY={SECRET}\n")
    monkeypatch.setenv("GROQ_API_KEY", SECRET)
    report, _ = examined()
    assert report["keys"]["GROQ_API_KEY"] == "environment"
    assert report["keys"]["OPENAI_API_KEY"] == ".env"
    assert report["keys"]["DISTILLKIT_API_KEY"] is None
    assert SECRET not in json.dumps(report) + CliRunner().invoke(cli, ["doctor"]).output


def test_every_extra_is_listed_with_its_purpose() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(extras) - {"cpu", "cuda12", "cuda13"}
    listed = {(row["extra"], row["name"]) for row in doctor._packages()}
    assert listed == {
        (extra, re.split(r"[>\[]", name)[0])
        for extra, names in extras.items()
        if extra in doctor.EXTRAS
        for name in names
    }


# ---------------------------------------------------------------------------------------------------- problems


def test_a_forced_kernel_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Nehalem")
    report, code = examined()
    assert "OPENBLAS_CORETYPE = Nehalem forces a kernel" in problems(report, "warning")
    assert code == 0


def test_a_slow_core_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_peak_gflops", lambda: 1e6)
    report, _ = examined()
    assert "which is low for this CPU (about 1000000 are possible)" in problems(report, "warning")


def test_a_cpu_that_cannot_run_numpy_is_an_error_and_nothing_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "missing_features", lambda: frozenset({"popcnt"}))
    report, code = examined()
    assert code == 1
    assert "cannot run the installed NumPy: it lacks popcnt" in problems(report, "error")
    assert (report["mlx"], report["blas"], report["plugins"]) == (None, None, None)


def test_a_missing_backend_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise UsageError("MLX has no backend here", "Install one.")

    monkeypatch.setattr(blas, "require_mlx", missing)
    report, code = examined()
    assert (code, problems(report, "error")) == (1, "MLX has no backend here")


def test_a_home_on_a_network_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "filesystem_type", lambda path: "nfs4")
    report, _ = examined()
    assert report["disk"]["remote"]
    assert "is on a network or FUSE file system (nfs4)" in problems(report, "warning")


def test_little_space_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1 << 60)
    report, _ = examined()
    assert "GB free" in problems(report, "warning")


def test_answers_are_counted_and_a_damaged_cache_is_an_error(home: Path) -> None:
    DiskAnswerStore(home / "cache" / "teachers").__exit__()
    report, code = examined()
    assert (report["cache"]["state"], report["cache"]["answers"], code) == ("ready", 0, 0)
    assert report["cache"]["bytes"] > 0
    (home / "cache" / "teachers" / "cache.db").write_bytes(b"no database" * 1000)
    report, code = examined()
    assert (report["cache"]["state"], code) == ("unusable", 1)
    assert "is damaged" in problems(report, "error")


def test_a_broken_plugin_of_an_installed_package_is_a_warning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = home / "broken_plugin-0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-plugin\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text("[distillkit]\nbroken = broken_plugin\n")
    (home / "broken_plugin.py").write_text("raise RuntimeError('no')\n")
    monkeypatch.syspath_prepend(str(home))
    report, code = examined()
    assert code == 0
    assert "the plugin broken is broken" in problems(report, "warning")
    assert report["plugins"]["broken"] == ["broken"]


def test_a_broken_plugin_that_was_asked_for_is_an_error(home: Path) -> None:
    (home / "broken.py").write_text("raise RuntimeError('no')\n")
    result = CliRunner().invoke(cli, ["-p", str(home / "broken.py"), "doctor", "--json"])
    assert result.exit_code == 1
    assert "broken" in problems(json.loads(result.stdout), "error")


# ---------------------------------------------------------------------------------------------------- online


@pytest.fixture
def server() -> Iterator[Provider]:
    """A server that lists two models."""
    models = Act(body=json.dumps({"object": "list", "data": [{"id": "small-b"}, {"id": "small-a"}]}).encode())
    with serving() as provider:
        provider.rule = lambda call: models if call.path.endswith("/models") else None
        yield provider


def test_online_lists_models_and_log_probabilities(server: Provider) -> None:
    report, code = examined("--online", "--base-url", server.url)
    (row,) = report["providers"]
    assert code == 0
    assert row["models"] == ["small-a", "small-b"]
    assert row["model"] == "small-a"
    assert row["top_logprobs"] > 0


def test_a_key_that_is_refused_is_an_error_and_stays_secret(server: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILLKIT_API_KEY", SECRET)
    server.rule = lambda call: error(401, f"Incorrect API key provided: {SECRET}", "invalid_api_key")
    report, code = examined("--online", "--base-url", server.url)
    assert code == 1
    assert "the teacher 'compatible'" in problems(report, "error")
    assert SECRET not in json.dumps(report)


def test_a_server_that_is_not_there_is_an_error() -> None:
    report, code = examined("--online", "--base-url", "http://127.0.0.1:9/v1")
    assert code == 1
    assert "the connection failed" in problems(report, "error")


def test_without_keys_nobody_is_asked() -> None:
    report, code = examined("--online")
    assert (report["providers"], code) == ([], 0)
    assert "no provider has a key" in problems(report, "warning")


def test_an_address_without_online_is_refused() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--base-url", "http://127.0.0.1:9/v1"])
    assert isinstance(result.exception, UsageError)
