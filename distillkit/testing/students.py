"""What an architecture owes the engine: hidden states that see no later token, and a head that can learn.

Does not know how good it could become.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..plugins.interfaces import Mixer, Student
from ..student.training.loss import Targets, mixed_loss
from ..student.training.optimizers import flatten
from .framework import Case, CheckError, expect, max_difference, run_checks

VOCAB, SEED = 61, 3
NEAR = 1e-4
STEPS, RATE = 30, 0.05


def check_student(cls: type[Student], options: Mapping[str, Any] | None = None) -> list[str]:
    """Hold an architecture against its promises. `options` are those of a recipe's [student] table: make it small."""
    checks = [
        declares_its_context,
        returns_hidden_states,
        offers_its_head,
        is_causal,
        keeps_rows_independent,
        is_reproducible_from_a_seed,
        reloads_from_its_weights,
        trains_every_parameter,
    ]
    return run_checks("students", cls, options, checks)


class Surprise(Mixer):
    """The surprise at each token."""

    name = "surprise"

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        """One term."""
        return {"hard": -targets.log_prob(logits)}


def network(case: Case, seed: int = SEED) -> nn.Module:
    """A network with the weights that a run with this seed begins with."""
    mx.random.seed(seed)
    model = case.build().build(VOCAB)
    expect(isinstance(model, nn.Module), f"build returned a {type(model).__name__}", "Return a module of mlx.nn.")
    mx.eval(model.parameters())
    model.eval()
    return model  # type: ignore[no-any-return]


def tokens(case: Case, batch: int = 2, length: int | None = None) -> mx.array:
    """Tokens [B, T], none like its neighbours."""
    count = length or min(case.build().context, 16)
    return (mx.arange(batch * count).reshape(batch, count) * 7 + 3) % VOCAB


def declares_its_context(case: Case) -> None:
    """The most tokens at once: it reads as many, and fewer."""
    context = case.build().context
    expect(isinstance(context, int) and context >= 2, f"its context is {context!r}", "Return a whole number above 1.")
    for length in (1, 2, context):
        network(case)(tokens(case, 1, length))


def returns_hidden_states(case: Case) -> None:
    """[B, T] to finite [B, T, D]."""
    read = tokens(case)
    hidden = network(case)(read)
    there = hidden.ndim == 3 and hidden.shape[:2] == read.shape
    expect(there, f"tokens {read.shape} become {hidden.shape}", "Return hidden states [B, T, D], not logits.")
    expect(mx.isfinite(hidden).all().item(), "some hidden states are not finite", "Look at its initial weights.")


def offers_its_head(case: Case) -> None:
    """The weight [V, D] and the bias [V], or None, that turn hidden states into logits."""
    model = network(case)
    width = model(tokens(case)).shape[-1]
    try:
        weight, bias = model.head
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckError(f"its network has no head: {error}", "Add a property `head`: weight, bias.") from error
    remedy = f"Return a weight of ({VOCAB}, {width}) and a bias of ({VOCAB},), or None."
    expect(weight.shape == (VOCAB, width), f"its head has a weight of {weight.shape}", remedy)
    expect(bias is None or bias.shape == (VOCAB,), f"its head has a bias of {getattr(bias, 'shape', bias)}", remedy)


def is_causal(case: Case) -> None:
    """What stands at a place is made of that token and those before it."""
    model, read = network(case), tokens(case)
    later = mx.concatenate([read[:, :-1], (read[:, -1:] + 1) % VOCAB], axis=1)
    apart = max_difference(model(later)[:, :-1], model(read)[:, :-1])
    expect(apart < NEAR, f"another last token changes what stands before it by {apart:.3g}", "Mask what comes later.")


def keeps_rows_independent(case: Case) -> None:
    """A row is read as it would be alone."""
    model, read = network(case), tokens(case)
    apart = max_difference(model(read)[1:], model(read[1:]))
    expect(apart < NEAR, f"another row beside it changes a row by {apart:.3g}", "Normalise within a row only.")


def is_reproducible_from_a_seed(case: Case) -> None:
    """A run with the same seed begins with the same weights."""
    one, two = (flatten(network(case).parameters()) for _ in range(2))
    same = one.keys() == two.keys() and all(mx.array_equal(one[name], two[name]).item() for name in one)
    expect(same, "the same seed gives other weights", "Draw them from mlx.core.random.")


def reloads_from_its_weights(case: Case) -> None:
    """Written to a checkpoint and read again, it is the same network."""
    model, other, file = network(case), network(case, SEED + 1), case.empty_folder("weights") / "model.safetensors"
    mx.save_safetensors(str(file), flatten(model.parameters()))
    other.load_weights(str(file))
    apart = max_difference(model(tokens(case)), other(tokens(case)))
    remedy = "Hold all that decides the output in parameters, and make the rest of the options."
    expect(apart == 0, f"after a trip through a checkpoint it differs by {apart:.3g}", remedy)


def trains_every_parameter(case: Case) -> None:
    """Each has a finite gradient, and going down it makes the loss smaller."""
    model, read = network(case), tokens(case)
    before, slopes = _loss(model, read)
    idle = [name for name, slope in flatten(slopes).items() if not mx.isfinite(slope).all().item()]
    expect(not idle, f"the gradient of {', '.join(idle[:3])} is not finite", "Look for a division or a log of 0.")
    idle = [name for name, slope in flatten(slopes).items() if not mx.abs(slope).max().item()]
    remedy = "Use it, or freeze it: model.freeze(keys=[...])."
    expect(not idle, f"nothing depends on {', '.join(idle[:3])}", remedy)
    for _ in range(STEPS):
        model.update(_stepped(model.trainable_parameters(), _loss(model, read)[1]))
    after, _ = _loss(model, read)
    remedy = "Look at its initial weights, and that gradients reach all of it."
    expect(after < before, f"{STEPS} steps down the gradient took the loss from {before:.3f} to {after:.3f}", remedy)


def _loss(model: nn.Module, read: mx.array) -> tuple[float, Any]:
    """The loss of a network that is to say each next token, and its gradients, by the engine."""
    hard = read[:, 1:].reshape(-1)
    ones = mx.ones(hard.shape)
    targets, totals = Targets(hard, ones, 0 * ones, 0 * ones), {"hard": ones.sum()}

    def loss(parameters: Any) -> mx.array:
        model.update(parameters)
        hidden = model(read[:, :-1])
        rows = hidden.reshape(-1, hidden.shape[-1])
        return mixed_loss(Surprise(), rows, model.head, targets, mx.array(0), {}, totals, 64)[0]

    parameters = model.trainable_parameters()
    value, slopes = mx.value_and_grad(loss)(parameters)
    mx.eval(value, slopes)
    model.update(parameters)
    return float(value.item()), slopes  # type: ignore[arg-type]


def _stepped(parameters: Any, slopes: Any) -> Any:
    from ..student.training.optimizers import unflatten

    down = flatten(slopes)
    length = mx.sqrt(sum(((slope * slope).sum() for slope in down.values()), mx.array(0.0)))
    return unflatten({n: value - RATE * down[n] / mx.maximum(length, 1) for n, value in flatten(parameters).items()})
