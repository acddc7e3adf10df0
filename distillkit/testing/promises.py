"""Promises: what all roles owe the host, and how broken ones are told.

A promise is a function that is handed a case, says by its name what is promised, and raises `BrokenError` where that
is not so. Does not know what any role is for.
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
from ..plugins import options
from ..plugins.discovery import FaultError, Origin, reason
from ..plugins.validation import Offer

UNKNOWN = "no_such_option"


class BrokenError(AssertionError):
    """A promise that is not kept: what was found, and what to do."""

    def __init__(self, found: str, remedy: str = "") -> None:
        super().__init__(f"{found}\n    {remedy}" if remedy else found)


@dataclass
class Case:
    """A class to be checked, the options it is built with, and a folder that is gone afterwards."""

    role: str
    offered: Any
    values: Mapping[str, Any]
    folder: Path
    more: dict[str, Any] = field(default_factory=dict)  # what this role's check was told beside

    @property
    def noun(self) -> str:
        """The role in the singular."""
        return self.role.removesuffix("s")

    def options(self, **others: Any) -> BaseModel:
        """The options as the host would read them from a recipe."""
        return options.read(self.offered.Options, {**self.values, **others}, Path.cwd())

    def new(self) -> Any:
        """A fresh object."""
        return self.offered(self.options())

    def place(self, name: str) -> Path:
        """An empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))


Promise = Callable[[Case], None]


def check(
    role: str, offered: Any, values: Mapping[str, Any] | None, promises: Sequence[Promise], **more: Any
) -> list[str]:
    """Try every promise of a class; returns the names of those kept, or raises an error that tells of all others."""
    with tempfile.TemporaryDirectory(prefix="distillkit-testing-") as folder:
        case = Case(role, offered, values or {}, Path(folder), more)
        foundations = [fulfils_its_contract, reads_its_options, can_be_built]
        broken = _broken(case, foundations) or _broken(case, promises)
    if broken:
        raise _told(case, broken)
    return [named(promise) for promise in (*foundations, *promises)]


def _broken(case: Case, promises: Sequence[Promise]) -> dict[str, BaseException]:
    """The promises that are not kept, and why."""
    broken: dict[str, BaseException] = {}
    for promise in promises:
        try:
            with silent():
                promise(case)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a plugin's code may raise anything
            broken[named(promise)] = error
    return broken


def named(promise: Promise) -> str:
    """The name of a promise, in words."""
    return promise.__name__.strip("_").replace("_", " ")


def _told(case: Case, broken: Mapping[str, BaseException]) -> AssertionError:
    """One error for all broken promises; its cause is the first of them."""
    who = getattr(case.offered, "__name__", repr(case.offered))
    count = "a promise" if len(broken) == 1 else f"{len(broken)} promises"
    lines = [f"{who} breaks {count} of a {case.noun}:"]
    for name, error in broken.items():
        text = str(error) if isinstance(error, BrokenError) else f"it raised {reason(error)}\n    {_seen(error)}"
        lines.append(f"  {name}: {text}")
    whole = AssertionError("\n".join(lines))
    whole.__cause__ = next(iter(broken.values()))
    return whole


def _seen(error: BaseException) -> str:
    """Where a plugin's error came from: the innermost line that is not ours."""
    here, trace, place = str(Path(__file__).parent.parent), error.__traceback__, ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith((here, "<")):
            place = f"{file}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return f"See {place}." if place else "See the traceback above."


def expect(kept: object, found: str, remedy: str = "") -> None:
    """Say what is wrong unless it is right."""
    if not kept:
        raise BrokenError(found, remedy)


def farthest(one: Any, other: Any) -> float:
    """How far two arrays are apart at the worst place."""
    return float((one - other).abs().max().item())


@contextmanager
def silent() -> Iterator[None]:
    """What is printed inside breaks a promise: standard output belongs to the command, which may be `--json`."""
    said = StringIO()
    with redirect_stdout(said):
        yield
    if said.getvalue().strip():
        sys.stderr.write(said.getvalue())
        first = said.getvalue().strip().splitlines()[0][:80]
        raise BrokenError(f"it printed {first!r}", "Say it with the module logging, or not at all.")


# ------------------------------------------------------------------------------------------- of all roles


def fulfils_its_contract(case: Case) -> None:
    """A subclass of its role, with a name, a docstring, and nothing missing."""
    try:
        Offer(case.role, case.offered, Origin(f"check_{case.noun}")).check(f"register_{case.role}")
    except FaultError as fault:
        raise BrokenError(str(fault)) from fault
    about = (case.offered.__doc__ or "").strip()
    expect(about, "it has no docstring", "Write what it does in a line: `distillkit plugins` shows it.")


def reads_its_options(case: Case) -> None:
    """They are read from a recipe, unknown ones are refused, and they are the same after a trip through JSON."""
    try:
        valid = case.options()
    except ValidationError as error:
        told = " ".join(str(error).split())
        remedy = f"Give an option a default, or say check_{case.noun}({case.offered.__name__}, {{...}})."
        raise BrokenError(f"they cannot be read from {dict(case.values)}: {told}", remedy) from error
    expect(_refuses(case), "unknown options are not refused", 'Leave extra="forbid", which they inherit, as it is.')
    expect(valid.model_config.get("frozen"), "they can be changed", "Leave frozen=True, which they inherit, as it is.")
    plain = plain_json(valid.model_dump(mode="json", by_alias=True), "the options")
    again = type(valid).model_validate_json(json.dumps(plain), strict=True)
    expect(again == valid, f"{valid!r} comes back from JSON as {again!r}", "Use types that JSON can hold.")


def _refuses(case: Case) -> bool:
    try:
        case.options(**{UNKNOWN: 1})
    except ValidationError:
        return True
    return False


def can_be_built(case: Case) -> None:
    """More than once, and it keeps the options that it was given."""
    valid = case.options()
    for _ in range(2):
        built = case.offered(valid)
        remedy = "Call super().__init__(options), and do not change self.options."
        expect(getattr(built, "options", None) == valid, "its options are not those it was built with", remedy)


def plain_json(value: Any, what: str) -> Any:
    """A value that JSON can hold, as JSON gives it back."""
    remedy = "Make it of text, numbers, true, false, None, lists and tables with keys of text."
    try:
        again = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise BrokenError(f"{what} cannot be written as JSON: {error}", remedy) from error
    expect(_listed(value) == again, f"{what} comes back from JSON as {again!r}, not as {value!r}", remedy)
    return again


def _listed(value: Any) -> Any:
    """The same with lists for tuples, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: _listed(inner) for key, inner in value.items()}
    return [_listed(inner) for inner in value] if isinstance(value, (list, tuple)) else value


@contextmanager
def or_refuses(what: str) -> Iterator[None]:
    """A refusal in words is as good as an answer; any other error is the plugin's own fault."""
    try:
        yield
    except DistillkitError as error:
        cause = error.__cause__
        if cause is not None and not isinstance(cause, DistillkitError) and " failed: " in error.message:
            remedy = "Cope with it, or raise a UsageError or TeacherError that says what to do."
            raise BrokenError(f"{what}: it raised {reason(cause)}", remedy) from cause
