"""Recipes that begin with the student of another recipe: which run of that recipe matches, or how to make one.

Decides when two recipes train a student in the same way. Does not run anything: the command line does.
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
# `--set` of these keys applies to the base recipe too: both need the same tokens, and a small trial is small in both.
TABLES = ("data", "tokenizer", "student")
KEYS = ("train.steps", "train.warmup", "train.batch_size", "train.accumulate", "train.streams", "train.precision")
# Keys of [train] that may differ between a matching run and the recipe: they do not change what is learnt.
MONITORING_KEYS = {"evaluate_every", "evaluate_batches", "sample_every", "checkpoint_every", "keep", "streams", "chunk"}
MONITORING_KEYS |= {"checkpointing"}
TRAINING_TABLES = ("seed", "data", "tokenizer", "student", "teacher", "mixer", "optimizer", "train")


def inherited_overrides(overrides: Sequence[str]) -> tuple[str, ...]:
    """Those overrides of the command line that also apply to the base recipe."""
    return tuple(override for override in overrides if _is_inherited(override.partition("=")[0].strip()))


def _is_inherited(key: str) -> bool:
    table = key.partition(".")[0]
    return key in KEYS or (table in TABLES and key != "student.from")


def base_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe whose student this one begins with, with the inherited overrides."""
    return load(recipe.student.from_ or "", overrides)


def check_same_tokenizer(recipe: Recipe, base: Recipe) -> None:
    """Refuse, before hours of training, two tokenizers that would be trained on different text."""
    if not is_trained(recipe.values()["tokenizer"]) or recipe.tokenizer != base.tokenizer:
        return
    own, of_base = ({**one.values()["data"], "tokens": None} for one in (recipe, base))  # a budget changes no tokenizer
    if differing := sorted(key for key in own.keys() | of_base.keys() if own.get(key) != of_base.get(key)):
        keys = ", ".join(f"data.{key}" for key in differing)
        raise UsageError(
            f"{recipe.name} and {base.name} would each train a tokenizer, on different text ({keys}), "
            "and a student goes on only with its own tokens",
            f"Set {keys} for both, or make {base.name} first and take its tokens: "
            f"--set tokenizer.kind={base.name}/1 --set student.from={base.name}/1",
        )


def matching_runs(recipe: Recipe) -> tuple[str | None, str | None]:
    """The runs whose recipe trains the same student: the newest that is trained, and the newest that is unfinished."""
    matching = [run for run in runs_of(recipe.name) if _matches(run, recipe)]
    trained = [str(run.path) for run in matching if last_step(run.checkpoints) >= recipe.train.steps]
    unfinished = [str(run.path) for run in matching if last_step(run.checkpoints) < recipe.train.steps]
    return trained[-1] if trained else None, unfinished[-1] if unfinished else None


def other_trained_runs(recipe: Recipe) -> list[str]:
    """Trained runs of a recipe's name whose recipe trains another student."""
    readable = [run for run in runs_of(recipe.name) if _is_readable(run)]
    return [run.name for run in readable if not _matches(run, recipe) and last_step(run.checkpoints)]


def recorded_base(run: Run) -> str | None:
    """The base run that a run began with, if it has been trained already."""
    return load(str(run.recipe)).student.from_ if last_step(run.checkpoints) else None


def _matches(run: Run, recipe: Recipe) -> bool:
    try:
        return (
            _is_readable(run)
            and run.recipe.is_file()
            and training_values(load(str(run.recipe))) == training_values(recipe)
        )
    except RecipeError:  # of another version of distillkit
        return False


def _is_readable(run: Run) -> bool:
    """Whether `run.json` can be read. Without it, the run's origin is unknown."""
    try:
        return run.info != {}
    except CorruptError:
        return False


def training_values(recipe: Recipe) -> dict[str, Any]:
    """The values of a recipe that determine what its student learns."""
    values = {key: value for key, value in recipe.values().items() if key in TRAINING_TABLES}
    values["train"] = {key: value for key, value in values["train"].items() if key not in MONITORING_KEYS}
    return values
