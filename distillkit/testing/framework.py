"""Running conformance checks: the checks that all roles share, and the report of failed ones.

A check is a function of a `Case`. Its name says what a plugin must do, and it raises `CheckError` if the plugin does
not. Does not know what any role is for.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from ..core.errors import DistillkitError
from ..plugins.discovery import InvalidPluginError, Origin, describe_error
from ..plugins.options import parse_options
from ..plugins.validation import Registration

UNKNOWN_OPTION = "no_such_option"


class CheckError(AssertionError):
    """A failed check: what was found, and how to fix it."""

    def __init__(self, found: str, remedy: str = "") -> None:
        super().__init__(f"{found}\n    {remedy}" if remedy else found)


@dataclass
class Case:
    """A class to check, the option values to construct it with, and a temporary folder."""

    role: str
    cls: Any
    values: Mapping[str, Any]
    folder: Path
    extra: dict[str, Any] = field(default_factory=dict)  # further arguments of this role's `check_` function

    @property
    def kind(self) -> str:
        """The role in the singular, for example "teacher"."""
        return self.role.removesuffix("s")

    def options(self, **overrides: Any) -> BaseModel:
        """The options as the host parses them from a recipe."""
        return parse_options(self.cls.Options, {**self.values, **overrides}, Path.cwd())

    def build(self) -> Any:
        """A new instance of the plugin."""
        return self.cls(self.options())

    def empty_folder(self, name: str) -> Path:
        """A new empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))


Check = Callable[[Case], None]


def run_checks(
    role: str, cls: Any, values: Mapping[str, Any] | None, checks: Sequence[Check], **extra: Any
) -> list[str]:
    """Run all checks on a class. Returns their names, or raises an AssertionError that lists every failed check.

    If a check that all roles share fails, the role's own checks are not run.
    """
    with tempfile.TemporaryDirectory(prefix="distillkit-testing-") as folder:
        case = Case(role, cls, values or {}, Path(folder), extra)
        shared = [implements_its_interface, parses_its_options, can_be_constructed]
        failed = _run(case, shared) or _run(case, checks)
    if failed:
        raise _report(case, failed)
    return [check_name(check) for check in (*shared, *checks)]


def _run(case: Case, checks: Sequence[Check]) -> dict[str, BaseException]:
    """Run checks; returns the errors of the failed ones by name."""
    failed: dict[str, BaseException] = {}
    for check in checks:
        try:
            with forbid_output():
                check(case)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's code may raise anything
            failed[check_name(check)] = error
    return failed


def check_name(check: Check) -> str:
    """The name of a check, in words."""
    return check.__name__.strip("_").replace("_", " ")


def _report(case: Case, failed: Mapping[str, BaseException]) -> AssertionError:
    """One error that lists all failed checks; its cause is the first of them."""
    name = getattr(case.cls, "__name__", repr(case.cls))
    count = "a check" if len(failed) == 1 else f"{len(failed)} checks"
    lines = [f"{name} fails {count} of check_{case.kind}:"]
    for check, error in failed.items():
        if isinstance(error, CheckError):
            text = str(error)
        else:
            text = f"it raised {describe_error(error)}\n    {_location(error)}"
        lines.append(f"  {check}: {text}")
    report = AssertionError("\n".join(lines))
    report.__cause__ = next(iter(failed.values()))
    return report


def _location(error: BaseException) -> str:
    """Where a plugin raised an error: the innermost line outside distillkit."""
    package, trace, location = str(Path(__file__).parent.parent), error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith((package, "<")):
            location = f"{file}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"See {location}." if location else "See the traceback above."


def expect(condition: object, found: str, remedy: str = "") -> None:
    """Fail the check unless the condition is true."""
    if not condition:
        raise CheckError(found, remedy)


def max_difference(one: Any, other: Any) -> float:
    """The largest absolute difference between two arrays."""
    return float((one - other).abs().max().item())


@contextmanager
def forbid_output() -> Iterator[None]:
    """Fail the check if the plugin prints: standard output belongs to the command, which may run with `--json`."""
    with redirect_stdout(StringIO()) as output:
        yield
    if printed := output.getvalue().strip():
        sys.stderr.write(output.getvalue())
        raise CheckError(
            f"it printed {printed.splitlines()[0][:80]!r}", "Use the logging module, or remove the output."
        )


# ------------------------------------------------------------------------------------------- checks of all roles


def implements_its_interface(case: Case) -> None:
    """It is a subclass of its role, with a name, a docstring and no missing method."""
    try:
        Registration(case.role, case.cls, Origin(f"check_{case.kind}")).check(f"register_{case.role}")
    except InvalidPluginError as error:
        raise CheckError(str(error)) from error
    about = (case.cls.__doc__ or "").strip()
    expect(about, "it has no docstring", "Describe it in one line: `distillkit plugins` shows this line.")


def parses_its_options(case: Case) -> None:
    """Its options are parsed from a recipe, refuse unknown keys, are frozen and survive a round trip through JSON."""
    try:
        options = case.options()
    except ValidationError as error:
        details = " ".join(str(error).split())
        remedy = f"Give each option a default, or call check_{case.kind}({case.cls.__name__}, {{...}})."
        raise CheckError(f"its options cannot be parsed from {dict(case.values)}: {details}", remedy) from error
    expect(_refuses_unknown_options(case), "unknown options are not refused", 'Keep the inherited extra="forbid".')
    expect(options.model_config.get("frozen"), "its options can be changed", "Keep the inherited frozen=True.")
    values = plain_json(options.model_dump(mode="json", by_alias=True), "the options")
    restored = type(options).model_validate_json(json.dumps(values), strict=True)
    expect(restored == options, f"{options!r} comes back from JSON as {restored!r}", "Use types that JSON has.")


def _refuses_unknown_options(case: Case) -> bool:
    try:
        case.options(**{UNKNOWN_OPTION: 1})
    except ValidationError:
        return True
    return False


def can_be_constructed(case: Case) -> None:
    """It can be constructed more than once, and keeps the options it is given."""
    options = case.options()
    for _ in range(2):
        plugin = case.cls(options)
        remedy = "Call super().__init__(options), and do not change self.options."
        expect(getattr(plugin, "options", None) == options, "its options are not those it was constructed with", remedy)


def plain_json(value: Any, what: str) -> Any:
    """The value after a round trip through JSON; fails the check if it cannot be serialised or changes."""
    remedy = "Use text, numbers, true, false, None, lists, and dictionaries with text keys."
    try:
        restored = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckError(f"{what} cannot be serialised as JSON: {error}", remedy) from error
    expect(
        _tuples_to_lists(value) == restored, f"{what} comes back from JSON as {restored!r}, not as {value!r}", remedy
    )
    return restored


def _tuples_to_lists(value: Any) -> Any:
    """The value with lists in place of tuples, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _tuples_to_lists(inner) for key, inner in value.items()}
    return [_tuples_to_lists(inner) for inner in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def allow_refusal(what: str) -> Iterator[None]:
    """Accept a DistillkitError that the plugin raised on purpose; any other error fails the check."""
    try:
        yield
    except DistillkitError as error:
        cause = error.__cause__
        if cause is not None and not isinstance(cause, DistillkitError) and " failed: " in error.message:
            remedy = "Handle it, or raise a UsageError or TeacherError that says what to do."
            raise CheckError(f"{what}: it raised {describe_error(cause)}", remedy) from cause
