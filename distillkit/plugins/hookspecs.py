"""All hooks, on one page. A plugin implements the ones it needs; each returns a list of classes.

A plugin may say `distillkit_api = 1` in its module: the API that it was built for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from .interfaces import Exporter, Judge, Mixer, Source, Student, Teacher, Tracker

hookspec = pluggy.HookspecMarker("distillkit")
hookimpl = pluggy.HookimplMarker("distillkit")

API_VERSION = 1  # raised when something is added that plugins may build on


class DeprecatedHook(DeprecationWarning):
    """A plugin implements a hook of an older API."""


def deprecated(instead: str) -> Callable[[Any], Any]:
    """Mark the hook of an older API: it goes on working as `instead`, and whoever implements it is told so."""

    def mark(hook: Any) -> Any:
        told = f"{hook.__name__} is deprecated. Write {instead} instead"
        hook.instead = instead
        return hookspec(warn_on_impl=DeprecatedHook(told))(hook)

    return mark


@hookspec
def register_sources() -> list[type[Source]]:
    """Where documents come from."""
    return []


@hookspec
def register_students() -> list[type[Student]]:
    """Architectures that can be trained."""
    return []


@hookspec
def register_teachers() -> list[type[Teacher]]:
    """Those who answer requests."""
    return []


@hookspec
def register_mixers() -> list[type[Mixer]]:
    """Losses that mix hard and soft targets."""
    return []


@hookspec
def register_judges() -> list[type[Judge]]:
    """Those who grade."""
    return []


@hookspec
def register_trackers() -> list[type[Tracker]]:
    """Those who are told of every logged step."""
    return []


@hookspec
def register_exporters() -> list[type[Exporter]]:
    """Formats that a student can be taken away in."""
    return []


@hookspec
def register_commands(cli: click.Group) -> None:
    """Commands to add to `distillkit`; looked for in the entry-point group `distillkit.commands`."""
