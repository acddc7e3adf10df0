"""All plugin hooks. A plugin implements those it needs; each returns a list of classes.

A plugin module may set `distillkit_api = 1`: the API version that it was built for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from .interfaces import Exporter, Judge, Mixer, Optimizer, Source, Student, Teacher, Tracker

hookspec = pluggy.HookspecMarker("distillkit")
hookimpl = pluggy.HookimplMarker("distillkit")

API_VERSION = 2  # raised when something is added that plugins may use


class DeprecatedHook(DeprecationWarning):
    """A plugin implements a hook of an older API version."""


def deprecated(instead: str) -> Callable[[Any], Any]:
    """Mark a hook of an older API version: it works like the hook `instead`, and implementing it warns."""

    def mark(hook: Any) -> Any:
        message = f"{hook.__name__} is deprecated. Write {instead} instead"
        hook.instead = instead
        return hookspec(warn_on_impl=DeprecatedHook(message))(hook)

    return mark


@hookspec
def register_sources() -> list[type[Source]]:
    """Sources of documents."""
    return []


@hookspec
def register_students() -> list[type[Student]]:
    """Architectures that can be trained."""
    return []


@hookspec
def register_teachers() -> list[type[Teacher]]:
    """Teachers, which answer requests."""
    return []


@hookspec
def register_mixers() -> list[type[Mixer]]:
    """Losses that combine hard and soft targets."""
    return []


@hookspec
def register_optimizers() -> list[type[Optimizer]]:
    """Optimizers, which update parameters from gradients."""
    return []


@hookspec
def register_judges() -> list[type[Judge]]:
    """Judges, which grade samples or students."""
    return []


@hookspec
def register_trackers() -> list[type[Tracker]]:
    """Trackers, which receive the metrics of every logged step."""
    return []


@hookspec
def register_exporters() -> list[type[Exporter]]:
    """File formats that a student can be exported to."""
    return []


@hookspec
def register_commands(cli: click.Group) -> None:
    """Further commands of `distillkit`; the entry point must be in the group `distillkit.commands`."""
