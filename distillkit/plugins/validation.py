"""Holds classes against the contracts of their roles, and a recipe's mixer against its teacher.

Knows the roles. Does not know where a class comes from, and builds none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import RecipeError
from ..recipe.recipe import Recipe
from ..recipe.schema import NO_TEACHER, TeacherTable, host_keys, keys_of
from .discovery import FaultError, Origin
from .hookspecs import API_VERSION
from .interfaces import ROLES, SIGNALS, Role, gives


@dataclass(frozen=True)
class Offer:
    """A class that a plugin offers for a role."""

    role: str
    offered: type[Role]
    origin: Origin

    @property
    def name(self) -> str:
        """The name that recipes use."""
        return self.offered.name

    @property
    def signal(self) -> Any:
        """The most that a teacher gives, the least that a mixer needs; None for other roles."""
        return getattr(self.offered, "signal", None)

    def check(self, hook: str) -> None:
        """Refuse a class that does not fulfil the contract of its role."""
        base, noun = ROLES[self.role], self.role.removesuffix("s")
        if not (isinstance(self.offered, type) and issubclass(self.offered, base)):
            raise FaultError(f"{hook} offers {kind(self.offered)}, expected a subclass of {base.__name__}")
        title = f"the {noun} {self.offered.__name__}"
        if missing := sorted(getattr(self.offered, "__abstractmethods__", ())):
            raise FaultError(f"{title} lacks {', '.join(missing)}")
        name = getattr(self.offered, "name", None)
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise FaultError(f'{title} has no name. Write name = "..." in it')
        if self.role == "teachers" and name == NO_TEACHER:
            raise FaultError(f"{title} is named {name!r}, which recipes use for no teacher at all")
        self._check_signal(f"the {noun} {name!r}")
        self._check_options(f"the {noun} {name!r}", base)

    def _check_signal(self, title: str) -> None:
        known = SIGNALS[1:] if self.role == "teachers" else SIGNALS
        if self.role in ("teachers", "mixers") and self.signal not in known:
            raise FaultError(f"{title} has signal = {self.signal!r}, expected one of {', '.join(known)}")

    def _check_options(self, title: str, base: type[Role]) -> None:
        model = self.offered.Options
        if not (isinstance(model, type) and issubclass(model, base.Options)):
            raise FaultError(f"the Options of {title} are not a subclass of {base.__name__}.Options")
        if taken := sorted(keys_of(model) & host_keys(self.role)):
            raise FaultError(f"{title} has an option {taken[0]!r}, which is the host's own key. Rename it")


def check_api(plugin: Any) -> None:
    """Refuse a plugin that was built for a newer API; one that does not say was built for the first."""
    built_for = getattr(plugin, "distillkit_api", 1)
    if not isinstance(built_for, int) or isinstance(built_for, bool) or built_for < 1:
        raise FaultError(f"it says distillkit_api = {built_for!r}, expected a whole number such as {API_VERSION}")
    if built_for > API_VERSION:
        remedy = "pip install --upgrade distillkit"
        raise FaultError(f"it was built for plugin API {built_for}, and this distillkit has {API_VERSION}. {remedy}")


def kind(value: Any) -> str:
    """What somebody gave instead of what was expected."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"a value of type {type(value).__name__}"


def signal_faults(
    recipe: Recipe, teacher: Offer | None, mixer: Offer, mixers: Sequence[Offer]
) -> Iterator[RecipeError]:
    """A mixer that needs more than the teacher gives is refused; `mixers` are those it could be instead."""
    if faults := list(_narrowing_faults(recipe, teacher)):
        yield from faults
        return
    most = teacher.signal if teacher else "none"
    given, narrowed = _given(recipe, most)
    if not gives(given, mixer.signal):
        has = f"the teacher {teacher.name!r} gives {given}" if teacher else "there is no teacher"
        if given != most:
            has += f", narrowed from {most} by {narrowed}"
        file = recipe.said_by(("mixer", "name")).file
        wrong = f"{file}: the mixer {mixer.name!r} needs {mixer.signal}; {has}"
        yield RecipeError(wrong, _instead(given, mixers))
    elif given == mixer.signal == "top_logprobs" and recipe.teacher and not recipe.teacher.store:
        yield from _answers_faults(recipe, recipe.teacher, f"the mixer {mixer.name!r} needs {mixer.signal}")
    if recipe.teacher and recipe.teacher.on_policy is not None:
        yield from _on_policy_faults(recipe, given, mixer)


def _on_policy_faults(recipe: Recipe, given: str, mixer: Offer) -> Iterator[RecipeError]:
    """What the student writes in a step is judged in that step, for a mixer that looks at what was likely."""
    file = recipe.said_by(("teacher", "on_policy")).file
    if recipe.teacher and recipe.teacher.store:
        wrong = "found it beside store = true, which asks the teacher before the student has written anything"
        yield RecipeError(f"{file}: teacher.on_policy: {wrong}", "Leave one of them out.")
    elif not gives(given, "top_logprobs"):
        has = f"the teacher {recipe.teacher.provider!r} gives {given}" if recipe.teacher else ""
        hint = 'Leave it out, or take a teacher with logits (provider = "checkpoint") or with top_logprobs.'
        yield RecipeError(f"{file}: teacher.on_policy: {has}, so it cannot judge what the student writes", hint)
    elif not gives(mixer.signal, "top_logprobs"):
        needs = f"the mixer {mixer.name!r} does not look at the teacher's opinion of what the student writes"
        hint = 'Leave it out, or take a mixer that does: name = "reverse-kl".'
        yield RecipeError(f"{file}: teacher.on_policy: {needs}", hint)


def _narrowing_faults(recipe: Recipe, teacher: Offer | None) -> Iterator[RecipeError]:
    """More asked of a teacher than it gives: a signal, or a store of logits."""
    table = recipe.teacher
    if teacher is None or table is None:
        return
    if table.signal and not gives(teacher.signal, table.signal):
        wrong = f"teacher.signal: found {table.signal!r}; the teacher {teacher.name!r} gives {teacher.signal}"
        yield RecipeError(f"{recipe.said_by(('teacher', 'signal')).file}: {wrong}")
    elif table.store and (given := table.signal or teacher.signal) != "logits":
        wrong = f"teacher.store: found true, but only logits are stored, and the teacher gives {given}"
        file = recipe.said_by(("teacher", "store")).file
        yield RecipeError(f"{file}: {wrong}", "Leave it out: answers are kept in the cache anyway.")


def _given(recipe: Recipe, most: str) -> tuple[str, str]:
    """What is used of a teacher, and the key of the recipe that makes it less than all."""
    table = recipe.teacher
    if table and table.store:
        return "top_logprobs", "teacher.store"
    return (table.signal, "teacher.signal") if table and table.signal else (most, "")


def _answers_faults(recipe: Recipe, table: TeacherTable, needs: str) -> Iterator[RecipeError]:
    """Soft targets that come with answers need answers, or texts of the student's, with log-probabilities."""
    told = table.prompts or bool(table.prompts_file) or table.on_policy is not None
    asked = {"top_logprobs": table.top_logprobs, "prompts": told}
    for key, found in asked.items():
        if not found:
            file = recipe.said_by(("teacher", key)).file
            yield RecipeError(f"{file}: teacher.{key}: found 0, expected at least 1: {needs}")


def _instead(given: str, mixers: Sequence[Offer]) -> str:
    names = sorted({mixer.name for mixer in mixers if gives(given, mixer.signal)})
    return f"Mixers that would do: {', '.join(names)}." if names else ""
