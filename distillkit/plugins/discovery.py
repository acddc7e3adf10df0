"""Plugins as they lie there: entry points of what is installed, files and modules that `-p` names.

Imports one at a time, and turns whatever goes wrong into words that go after a plugin's name. Does not know
what a plugin offers.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..core.errors import PluginError
from ..core.timeouts import time_limit

if TYPE_CHECKING:
    from packaging.requirements import Requirement

GROUP = "distillkit"
COMMANDS = "distillkit.commands"
HOST = "distillkit"
IMPORT_SECONDS = 60.0  # big libraries take a while on a cold disk


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from: an entry point of a distribution, or what `-p` named."""

    plugin: str
    distribution: str | None = None
    version: str | None = None

    @property
    def built_in(self) -> bool:
        """Whether it came with distillkit itself."""
        return self.distribution == HOST

    def __str__(self) -> str:
        if self.distribution is None:
            return self.plugin
        return f"{self.plugin} ({' '.join(filter(None, [self.distribution, self.version]))})"


@dataclass(frozen=True)
class Broken:
    """A plugin that could not be used, and why."""

    name: str
    reason: str
    distribution: str | None = None
    version: str | None = None

    @classmethod
    def of(cls, origin: Origin, fault: FaultError) -> Broken:
        """The plugin at fault."""
        return cls(origin.plugin, str(fault), origin.distribution, origin.version)

    def row(self) -> dict[str, Any]:
        """What a list of plugins says of it."""
        where = {"distribution": self.distribution, "version": self.version}
        return {"status": "broken", "plugin": self.name, "reason": self.reason, **where}

    def __str__(self) -> str:
        return f"{Origin(self.name, self.distribution, self.version)} is broken: {self.reason}"


class FaultError(Exception):
    """What is wrong with a plugin, in words that go after its name. Never leaves the plugin host."""


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turn whatever a plugin does wrong into a fault: its code may raise anything, or leave the program."""
    try:
        yield
    except FaultError:
        raise
    except (Exception, SystemExit) as error:
        raise FaultError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """An exception in one line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# ----------------------------------------------------------------------------------------------- entry points


def entries(group: str, broken: list[Broken]) -> Iterator[tuple[Origin, metadata.EntryPoint]]:
    """The installed entry points of a group. A distribution whose list cannot be read counts as broken."""
    seen: set[str] = set()
    for found in metadata.distributions():
        if group not in (found.read_text("entry_points.txt") or ""):
            continue  # reading is cheap, parsing all of an environment is not
        told = found.metadata  # parsed each time that it is asked for
        name, version = str(told["Name"]), str(told["Version"])
        if name.lower() in seen:  # as Python does: the first on the path hides the others
            continue
        seen.add(name.lower())
        try:
            mine = [entry for entry in found.entry_points if entry.group == group]
        except Exception as error:  # noqa: BLE001 - one unreadable list must not stop the others
            broken.append(Broken(name, f"its entry points cannot be read: {reason(error)}", name, version))
            continue
        for entry in mine:
            yield Origin(entry.name, name, version), entry


def imported(origin: Origin, entry: metadata.EntryPoint) -> Any:
    """The plugin that an entry point means."""
    if not origin.built_in:
        _check_host(entry)
    with blamed("it cannot be imported"), time_limit(IMPORT_SECONDS, "not loaded"):
        try:
            return entry.load()
        except ModuleNotFoundError as error:
            again = f"Install what it needs: pip install --upgrade {entry.dist.name if entry.dist else entry.name}"
            raise FaultError(f"it cannot be imported: {reason(error)}. {again}") from error


def _check_host(entry: metadata.EntryPoint) -> None:
    """Refuse what was built for another distillkit before its imports fail in some odd way."""
    from packaging.requirements import InvalidRequirement, Requirement

    if entry.dist is None:
        return
    with blamed("its requirements cannot be read"):
        named_so = [text for text in entry.dist.requires or () if text.lower().startswith(HOST)]
    for text in named_so:
        with suppress(InvalidRequirement):
            wanted = Requirement(text)
            if wanted.name.lower() == HOST and not wanted.specifier.contains(__version__, prereleases=True):
                raise FaultError(f"it needs {wanted}, and this is distillkit {__version__}")


# ---------------------------------------------------------------------------------------------------- by name


def named(spec: str) -> tuple[Origin, Any]:
    """The plugin that `-p` names: a file, or a module."""
    with blamed("it cannot be imported"), time_limit(IMPORT_SECONDS, "not loaded"):
        if spec.endswith(".py") or "/" in spec:
            path = Path(spec)
            return Origin(spec, version=_version_of(path)), _import_file(path)
        module = importlib.import_module(spec)
        version = getattr(module, "__version__", None)
        return Origin(spec, version=version and str(version)), module


def _import_file(path: Path) -> Any:
    """A file as a module under a private name; its folder is never put on the path."""
    name = f"_distillkit_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise FaultError("it is not a Python file")
    module = util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _version_of(path: Path) -> str:
    """A file has no version but its content."""
    if not path.is_file():
        raise FaultError("there is no such file")
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


# ----------------------------------------------------------------------------------------------- requirements


def require(text: str, broken: Iterable[Broken]) -> None:
    """Check one requirement of a recipe: installed, new enough, and not broken."""
    from packaging.utils import canonicalize_name

    wanted = _requirement(text)
    if wanted.marker is not None and not wanted.marker.evaluate():
        return
    _check_version(wanted)
    for one in broken:
        if one.distribution and canonicalize_name(one.distribution) == canonicalize_name(wanted.name):
            raise PluginError(f"the recipe needs {wanted}; {one}")


def _requirement(text: str) -> Requirement:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return Requirement(text)
    except InvalidRequirement as error:
        example = 'Write it as plugins = ["distillkit-x>=0.2"]'
        raise PluginError(f"plugins: found {text!r}, expected a requirement", example) from error


def _check_version(wanted: Requirement) -> None:
    from packaging.version import InvalidVersion

    hint = f"Install it: pip install '{wanted}'"
    try:
        version = metadata.version(wanted.name)
        fits = wanted.specifier.contains(version, prereleases=True)
    except metadata.PackageNotFoundError as error:
        raise PluginError(f"the recipe needs {wanted}, which is not installed", hint) from error
    except (InvalidVersion, TypeError) as error:
        raise PluginError(f"the recipe needs {wanted}; what is installed has no version", hint) from error
    if not fits:
        raise PluginError(f"the recipe needs {wanted}; {version} is installed", hint)
