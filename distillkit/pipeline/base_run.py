"""A recipe that begins with the student of another: which run of that other fits, and what it would be like.

Knows when two recipes teach a student the same. Does not run anything: that is the command's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.errors import CorruptError, RecipeError, UsageError
from ..core.run_folder import Run, runs_of
from ..data.tokenizer import is_trained
from ..recipe.messages import Loc
from ..recipe.recipe import Recipe, load
from ..student.checkpoint import last_step

FROM: Loc = ("student", "from")
# What `--set` says of these holds for the first recipe, too: both must read alike, and a small trial is small in both.
TABLES = ("data", "tokenizer", "student")
KEYS = ("train.steps", "train.warmup", "train.batch_size", "train.accumulate", "train.streams", "train.precision")
# What may differ between a run and the recipe that is asked for: how training is watched, not what is learnt.
WATCHING = {"evaluate_every", "evaluate_batches", "sample_every", "checkpoint_every", "keep", "streams", "chunk"}
WATCHING |= {"checkpointing"}
LEARNT = ("seed", "data", "tokenizer", "student", "teacher", "mixer", "train")


def passed_down(overrides: Sequence[str]) -> tuple[str, ...]:
    """Those of the values from the command line that the first recipe takes over."""
    return tuple(override for override in overrides if _goes_down(override.partition("=")[0].strip()))


def _goes_down(key: str) -> bool:
    table = key.partition(".")[0]
    return key in KEYS or (table in TABLES and key != "student.from")


def recipe_for(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe whose student this one begins with, with what the command line says of both."""
    return load(recipe.student.from_ or "", overrides)


def refuse_other_tokens(recipe: Recipe, other: Recipe) -> None:
    """Refuse, before hours of training, two tokenizers that would learn from different text, so different tokens."""
    if not is_trained(recipe.values()["tokenizer"]) or recipe.tokenizer != other.tokenizer:
        return
    mine, theirs = (
        {**one.values()["data"], "tokens": None} for one in (recipe, other)
    )  # a budget changes no tokenizer
    if differing := sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)):
        keys = ", ".join(f"data.{key}" for key in differing)
        raise UsageError(
            f"{recipe.name} and {other.name} would each train a tokenizer, on different text ({keys}), "
            "and a student goes on only with its own tokens",
            f"Set {keys} for both, or make {other.name} first and take its tokens: "
            f"--set tokenizer.kind={other.name}/1 --set student.from={other.name}/1",
        )


def runs_that_fit(recipe: Recipe) -> tuple[str | None, str | None]:
    """Of the runs that teach just what a recipe would: the newest that is trained, and the newest that is not."""
    fitting = [run for run in runs_of(recipe.name) if _fits(run, recipe)]
    trained = [str(run.path) for run in fitting if last_step(run.checkpoints) >= recipe.train.steps]
    begun = [str(run.path) for run in fitting if last_step(run.checkpoints) < recipe.train.steps]
    return trained[-1] if trained else None, begun[-1] if begun else None


def others(recipe: Recipe) -> list[str]:
    """Trained runs of a recipe's name that teach something else."""
    sound = [run for run in runs_of(recipe.name) if _is_sound(run)]
    return [run.name for run in sound if not _fits(run, recipe) and last_step(run.checkpoints)]


def recorded(run: Run) -> str | None:
    """What a run began with, once it has been trained for a while; it does not begin again."""
    return load(str(run.recipe)).student.from_ if last_step(run.checkpoints) else None


def _fits(run: Run, recipe: Recipe) -> bool:
    try:
        return _is_sound(run) and run.recipe.is_file() and learnt(load(str(run.recipe))) == learnt(recipe)
    except RecipeError:  # of another version of distillkit
        return False


def _is_sound(run: Run) -> bool:
    """Whether a run has a record that can be read; with a damaged one nobody knows what it is."""
    try:
        return run.info != {}
    except CorruptError:
        return False


def learnt(recipe: Recipe) -> dict[str, Any]:
    """All of a recipe that decides what its student becomes."""
    values = {key: value for key, value in recipe.values().items() if key in LEARNT}
    values["train"] = {key: value for key, value in values["train"].items() if key not in WATCHING}
    return values
