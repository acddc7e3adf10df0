"""All hooks, on one page. A plugin implements the ones it needs; each returns a list of classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import click

    from .roles import Exporter, Judge, Mixer, Source, Student, Teacher, Tracker

hookspec = pluggy.HookspecMarker("distillkit")
hookimpl = pluggy.HookimplMarker("distillkit")


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
