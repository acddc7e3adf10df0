"""Finding and importing plugins: entry points of installed distributions, and files or modules named with `-p`.

Plugins are imported one at a time, and every error becomes a message that can follow the plugin's name. Does not know
what a plugin registers.
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
COMMANDS_GROUP = "distillkit.commands"
HOST = "distillkit"
IMPORT_TIMEOUT = 60.0  # seconds; large libraries load slowly from a cold disk


@dataclass(frozen=True)
class Origin:
    """Where a plugin comes from: an entry point of a distribution, or a name given with `-p`."""

    plugin: str
    distribution: str | None = None
    version: str | None = None

    @property
    def built_in(self) -> bool:
        """Whether the plugin is part of distillkit itself."""
        return self.distribution == HOST

    def __str__(self) -> str:
        if self.distribution is None:
            return self.plugin
        return f"{self.plugin} ({' '.join(filter(None, [self.distribution, self.version]))})"


@dataclass(frozen=True)
class BrokenPlugin:
    """A plugin that cannot be used, and the reason."""

    name: str
    reason: str
    distribution: str | None = None
    version: str | None = None

    @classmethod
    def from_error(cls, origin: Origin, error: InvalidPluginError) -> BrokenPlugin:
        """A broken plugin with the error's message as the reason."""
        return cls(origin.plugin, str(error), origin.distribution, origin.version)

    def to_row(self) -> dict[str, Any]:
        """Its row in the list of plugins, as plain JSON."""
        source = {"distribution": self.distribution, "version": self.version}
        return {"status": "broken", "plugin": self.name, "reason": self.reason, **source}

    def __str__(self) -> str:
        return f"{Origin(self.name, self.distribution, self.version)} is broken: {self.reason}"


class InvalidPluginError(Exception):
    """A plugin cannot be used. The message follows the plugin's name; it is always caught inside this package."""


@contextmanager
def as_invalid_plugin(what: str) -> Iterator[None]:
    """Convert any exception of a plugin's code, SystemExit included, to an InvalidPluginError."""
    try:
        yield
    except InvalidPluginError:
        raise
    except (Exception, SystemExit) as error:
        raise InvalidPluginError(f"{what}: {describe_error(error)}") from error


def describe_error(error: BaseException) -> str:
    """An exception as one line: its type and message."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# ----------------------------------------------------------------------------------------------- entry points


def iter_entry_points(group: str, broken: list[BrokenPlugin]) -> Iterator[tuple[Origin, metadata.EntryPoint]]:
    """The installed entry points of a group. Distributions whose entry points cannot be read are added to `broken`."""
    seen: set[str] = set()
    for distribution in metadata.distributions():
        if group not in (distribution.read_text("entry_points.txt") or ""):
            continue  # reading the file is cheap, parsing every distribution's entry points is not
        info = distribution.metadata  # a property that parses on every access
        name, version = str(info["Name"]), str(info["Version"])
        if name.lower() in seen:  # as in Python's imports, the first on the path hides the others
            continue
        seen.add(name.lower())
        try:
            selected = [entry for entry in distribution.entry_points if entry.group == group]
        except Exception as error:  # noqa: BLE001 - one unreadable file must not affect other plugins
            broken.append(
                BrokenPlugin(name, f"its entry points cannot be read: {describe_error(error)}", name, version)
            )
            continue
        for entry in selected:
            yield Origin(entry.name, name, version), entry


def load_entry_point(origin: Origin, entry: metadata.EntryPoint) -> Any:
    """Import the plugin that an entry point refers to."""
    if not origin.built_in:
        _check_host(entry)
    with as_invalid_plugin("it cannot be imported"), time_limit(IMPORT_TIMEOUT, "not loaded"):
        try:
            return entry.load()
        except ModuleNotFoundError as error:
            remedy = f"Install what it needs: pip install --upgrade {entry.dist.name if entry.dist else entry.name}"
            raise InvalidPluginError(f"it cannot be imported: {describe_error(error)}. {remedy}") from error


def _check_host(entry: metadata.EntryPoint) -> None:
    """Refuse a plugin that requires another version of distillkit, before its imports fail for that reason."""
    from packaging.requirements import InvalidRequirement, Requirement

    if entry.dist is None:
        return
    with as_invalid_plugin("its requirements cannot be read"):
        requirements = [text for text in entry.dist.requires or () if text.lower().startswith(HOST)]
    for text in requirements:
        with suppress(InvalidRequirement):
            required = Requirement(text)
            if required.name.lower() == HOST and not required.specifier.contains(__version__, prereleases=True):
                raise InvalidPluginError(f"it needs {required}, and this is distillkit {__version__}")


# ---------------------------------------------------------------------------------------------------- by name


def load_by_name(spec: str) -> tuple[Origin, Any]:
    """Import the plugin that `-p` names: a file, or a module."""
    with as_invalid_plugin("it cannot be imported"), time_limit(IMPORT_TIMEOUT, "not loaded"):
        if spec.endswith(".py") or "/" in spec:
            path = Path(spec)
            return Origin(spec, version=_version_of(path)), _import_file(path)
        module = importlib.import_module(spec)
        version = getattr(module, "__version__", None)
        return Origin(spec, version=version and str(version)), module


def _import_file(path: Path) -> Any:
    """Import a file under a private module name. Its folder is not added to `sys.path`."""
    name = f"_distillkit_plugin_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InvalidPluginError("it is not a Python file")
    module = util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pydantic look up their module here
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _version_of(path: Path) -> str:
    """The hash of a file, used as its version."""
    if not path.is_file():
        raise InvalidPluginError("there is no such file")
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


# ----------------------------------------------------------------------------------------------- requirements


def check_requirement(text: str, broken: Iterable[BrokenPlugin]) -> None:
    """Check that a distribution a recipe requires is installed, has a suitable version and is not broken."""
    from packaging.utils import canonicalize_name

    requirement = _parse_requirement(text)
    if requirement.marker is not None and not requirement.marker.evaluate():
        return
    _check_version(requirement)
    for plugin in broken:
        if plugin.distribution and canonicalize_name(plugin.distribution) == canonicalize_name(requirement.name):
            raise PluginError(f"the recipe needs {requirement}; {plugin}")


def _parse_requirement(text: str) -> Requirement:
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        return Requirement(text)
    except InvalidRequirement as error:
        example = 'Write it as plugins = ["distillkit-x>=0.2"]'
        raise PluginError(f"plugins: found {text!r}, expected a requirement", example) from error


def _check_version(requirement: Requirement) -> None:
    from packaging.version import InvalidVersion

    hint = f"Install it: pip install '{requirement}'"
    try:
        version = metadata.version(requirement.name)
        is_suitable = requirement.specifier.contains(version, prereleases=True)
    except metadata.PackageNotFoundError as error:
        raise PluginError(f"the recipe needs {requirement}, which is not installed", hint) from error
    except (InvalidVersion, TypeError) as error:
        raise PluginError(f"the recipe needs {requirement}; the installed one has no valid version", hint) from error
    if not is_suitable:
        raise PluginError(f"the recipe needs {requirement}; {version} is installed", hint)
