"""Checks that plugin classes implement their interfaces, and that a recipe's mixer and teacher fit together.

Does not import plugins and does not construct any.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import RecipeError
from ..recipe.recipe import Recipe
from ..recipe.schema import NO_TEACHER, TeacherTable, host_keys, keys_of
from .discovery import InvalidPluginError, Origin
from .hookspecs import API_VERSION
from .interfaces import ROLES, SIGNALS, Role, signal_suffices


@dataclass(frozen=True)
class Registration:
    """A class that a plugin registered for a role."""

    role: str
    cls: type[Role]
    origin: Origin

    @property
    def name(self) -> str:
        """The name that recipes use."""
        return self.cls.name

    @property
    def signal(self) -> Any:
        """The most that a teacher provides, or the least that a mixer needs; None for other roles."""
        return getattr(self.cls, "signal", None)

    def check(self, hook: str) -> None:
        """Raise an InvalidPluginError if the class does not implement the interface of its role."""
        base, kind = ROLES[self.role], self.role.removesuffix("s")
        if not (isinstance(self.cls, type) and issubclass(self.cls, base)):
            raise InvalidPluginError(f"{hook} offers {describe_type(self.cls)}, expected a subclass of {base.__name__}")
        title = f"the {kind} {self.cls.__name__}"
        if missing := sorted(getattr(self.cls, "__abstractmethods__", ())):
            raise InvalidPluginError(f"{title} lacks {', '.join(missing)}")
        name = getattr(self.cls, "name", None)
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise InvalidPluginError(f'{title} has no name. Write name = "..." in it')
        if self.role == "teachers" and name == NO_TEACHER:
            raise InvalidPluginError(f"{title} is named {name!r}, which recipes use to say that there is no teacher")
        self._check_signal(f"the {kind} {name!r}")
        self._check_options(f"the {kind} {name!r}", base)

    def _check_signal(self, title: str) -> None:
        known = SIGNALS[1:] if self.role == "teachers" else SIGNALS
        if self.role in ("teachers", "mixers") and self.signal not in known:
            raise InvalidPluginError(f"{title} has signal = {self.signal!r}, expected one of {', '.join(known)}")

    def _check_options(self, title: str, base: type[Role]) -> None:
        model = self.cls.Options
        if not (isinstance(model, type) and issubclass(model, base.Options)):
            raise InvalidPluginError(f"the Options of {title} are not a subclass of {base.__name__}.Options")
        if taken := sorted(keys_of(model) & host_keys(self.role)):
            raise InvalidPluginError(f"{title} has an option {taken[0]!r}, which is a key of the host. Rename it")


def check_api_version(plugin: Any) -> None:
    """Refuse a plugin that was built for a newer API version. The default is version 1."""
    built_for = getattr(plugin, "distillkit_api", 1)
    if not isinstance(built_for, int) or isinstance(built_for, bool) or built_for < 1:
        raise InvalidPluginError(
            f"it has distillkit_api = {built_for!r}, expected a whole number such as {API_VERSION}"
        )
    if built_for > API_VERSION:
        remedy = "pip install --upgrade distillkit"
        raise InvalidPluginError(
            f"it was built for plugin API {built_for}, and this distillkit has {API_VERSION}. {remedy}"
        )


def describe_type(value: Any) -> str:
    """The type of an unexpected value, for error messages."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a value of type {type(value).__name__}"


def signal_errors(
    recipe: Recipe, teacher: Registration | None, mixer: Registration, mixers: Sequence[Registration]
) -> Iterator[RecipeError]:
    """Yield an error if the mixer needs more than the teacher provides; `mixers` are the possible alternatives."""
    if errors := list(_teacher_errors(recipe, teacher)):
        yield from errors
        return
    full = teacher.signal if teacher else "none"
    given, narrowed_by = _signal_used(recipe, full)
    if not signal_suffices(given, mixer.signal):
        has = f"the teacher {teacher.name!r} gives {given}" if teacher else "there is no teacher"
        if given != full:
            has += f", narrowed from {full} by {narrowed_by}"
        file = recipe.layer_of(("mixer", "name")).file
        yield RecipeError(f"{file}: the mixer {mixer.name!r} needs {mixer.signal}; {has}", _alternatives(given, mixers))
    elif given == mixer.signal == "top_logprobs" and recipe.teacher and not recipe.teacher.store:
        yield from _answer_errors(recipe, recipe.teacher, f"the mixer {mixer.name!r} needs {mixer.signal}")
    if recipe.teacher and recipe.teacher.on_policy is not None:
        yield from _on_policy_errors(recipe, given, mixer)


def _on_policy_errors(recipe: Recipe, given: str, mixer: Registration) -> Iterator[RecipeError]:
    """On-policy rows are scored during training, so teacher and mixer must use probabilities."""
    file = recipe.layer_of(("teacher", "on_policy")).file
    if recipe.teacher and recipe.teacher.store:
        problem = "cannot be combined with store = true, which asks the teacher before the student has written anything"
        yield RecipeError(f"{file}: teacher.on_policy: {problem}", "Remove one of them.")
    elif not signal_suffices(given, "top_logprobs"):
        has = f"the teacher {recipe.teacher.provider!r} gives {given}" if recipe.teacher else ""
        hint = 'Remove it, or use a teacher with logits (provider = "checkpoint") or with top_logprobs.'
        yield RecipeError(f"{file}: teacher.on_policy: {has}, so it cannot score what the student writes", hint)
    elif not signal_suffices(mixer.signal, "top_logprobs"):
        problem = f"the mixer {mixer.name!r} does not use the teacher's probabilities"
        hint = 'Remove it, or use a mixer that does: name = "reverse-kl".'
        yield RecipeError(f"{file}: teacher.on_policy: {problem}", hint)


def _teacher_errors(recipe: Recipe, teacher: Registration | None) -> Iterator[RecipeError]:
    """The recipe asks for more than the teacher provides: a signal, or stored logits."""
    table = recipe.teacher
    if teacher is None or table is None:
        return
    if table.signal and not signal_suffices(teacher.signal, table.signal):
        problem = f"teacher.signal: found {table.signal!r}; the teacher {teacher.name!r} gives {teacher.signal}"
        yield RecipeError(f"{recipe.layer_of(('teacher', 'signal')).file}: {problem}")
    elif table.store and (given := table.signal or teacher.signal) != "logits":
        problem = f"teacher.store: found true, but only logits are stored, and the teacher gives {given}"
        file = recipe.layer_of(("teacher", "store")).file
        yield RecipeError(f"{file}: {problem}", "Remove it: answers are kept in the cache anyway.")


def _signal_used(recipe: Recipe, full: str) -> tuple[str, str]:
    """The signal that is used, and the recipe key that narrows the teacher's full signal, if any."""
    table = recipe.teacher
    if table and table.store:
        return "top_logprobs", "teacher.store"
    return (table.signal, "teacher.signal") if table and table.signal else (full, "")


def _answer_errors(recipe: Recipe, table: TeacherTable, reason: str) -> Iterator[RecipeError]:
    """Soft targets from answers need log-probabilities, and prompts or on-policy rows to get them for."""
    has_texts = table.prompts or bool(table.prompts_file) or table.on_policy is not None
    for key, value in {"top_logprobs": table.top_logprobs, "prompts": has_texts}.items():
        if not value:
            file = recipe.layer_of(("teacher", key)).file
            yield RecipeError(f"{file}: teacher.{key}: found 0, expected at least 1: {reason}")


def _alternatives(given: str, mixers: Sequence[Registration]) -> str:
    names = sorted({mixer.name for mixer in mixers if signal_suffices(given, mixer.signal)})
    return f"Mixers that work with {given}: {', '.join(names)}." if names else ""
