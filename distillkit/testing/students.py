"""Checks of architectures: causal hidden states, and parameters that can be trained and saved.

Does not judge how well the architecture learns.
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
TOLERANCE = 1e-4
STEPS, LEARNING_RATE = 30, 0.05


def check_student(cls: type[Student], options: Mapping[str, Any] | None = None) -> list[str]:
    """Check an architecture. `options` are those of a recipe's [student] table; keep it small."""
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


class CrossEntropy(Mixer):
    """Cross-entropy with the hard targets."""

    name = "cross-entropy"

    def rows(self, logits: mx.array, targets: Targets, step: mx.array) -> dict[str, mx.array]:
        """The single term `hard`."""
        return {"hard": -targets.log_prob(logits)}


def network(case: Case, seed: int = SEED) -> nn.Module:
    """A network with the initial weights of a run with this seed."""
    mx.random.seed(seed)
    model = case.build().build(VOCAB)
    expect(isinstance(model, nn.Module), f"build returned a {type(model).__name__}", "Return a module of mlx.nn.")
    mx.eval(model.parameters())
    model.eval()
    return model  # type: ignore[no-any-return]


def make_tokens(case: Case, batch: int = 2, length: int | None = None) -> mx.array:
    """Tokens [B, T], each different from its neighbours."""
    count = length or min(case.build().context, 16)
    return (mx.arange(batch * count).reshape(batch, count) * 7 + 3) % VOCAB


def declares_its_context(case: Case) -> None:
    """Its context is a whole number, and it accepts that many tokens or fewer."""
    context = case.build().context
    expect(isinstance(context, int) and context >= 2, f"its context is {context!r}", "Return a whole number above 1.")
    for length in (1, 2, context):
        network(case)(make_tokens(case, 1, length))


def returns_hidden_states(case: Case) -> None:
    """It maps tokens [B, T] to finite hidden states [B, T, D]."""
    tokens = make_tokens(case)
    hidden = network(case)(tokens)
    fits = hidden.ndim == 3 and hidden.shape[:2] == tokens.shape
    expect(fits, f"tokens of shape {tokens.shape} become {hidden.shape}", "Return hidden states [B, T, D], not logits.")
    expect(mx.isfinite(hidden).all().item(), "some hidden states are not finite", "Check its initial weights.")


def offers_its_head(case: Case) -> None:
    """`head` is the weight [V, D] and the bias [V], or None, that map hidden states to logits."""
    model = network(case)
    width = model(make_tokens(case)).shape[-1]
    try:
        weight, bias = model.head
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckError(f"its network has no head: {error}", "Add a property `head`: weight, bias.") from error
    remedy = f"Return a weight of ({VOCAB}, {width}) and a bias of ({VOCAB},), or None."
    expect(weight.shape == (VOCAB, width), f"its head has a weight of shape {weight.shape}", remedy)
    expect(
        bias is None or bias.shape == (VOCAB,), f"its head has a bias of shape {getattr(bias, 'shape', bias)}", remedy
    )


def is_causal(case: Case) -> None:
    """The hidden state at a position depends only on that token and earlier ones."""
    model, tokens = network(case), make_tokens(case)
    changed = mx.concatenate([tokens[:, :-1], (tokens[:, -1:] + 1) % VOCAB], axis=1)
    difference = max_difference(model(changed)[:, :-1], model(tokens)[:, :-1])
    found = f"changing the last token changes earlier hidden states by {difference:.3g}"
    expect(difference < TOLERANCE, found, "Mask later tokens.")


def keeps_rows_independent(case: Case) -> None:
    """The hidden states of a row do not depend on the other rows of the batch."""
    model, tokens = network(case), make_tokens(case)
    difference = max_difference(model(tokens)[1:], model(tokens[1:]))
    expect(
        difference < TOLERANCE, f"another row of the batch changes a row by {difference:.3g}", "Normalise within rows."
    )


def is_reproducible_from_a_seed(case: Case) -> None:
    """The same seed gives the same initial weights."""
    one, two = (flatten(network(case).parameters()) for _ in range(2))
    same = one.keys() == two.keys() and all(mx.array_equal(one[name], two[name]).item() for name in one)
    expect(same, "the same seed gives different weights", "Sample them with mlx.core.random.")


def reloads_from_its_weights(case: Case) -> None:
    """A network restored from saved weights gives the same output."""
    model, other, file = network(case), network(case, SEED + 1), case.empty_folder("weights") / "model.safetensors"
    mx.save_safetensors(str(file), flatten(model.parameters()))
    other.load_weights(str(file))
    difference = max_difference(model(make_tokens(case)), other(make_tokens(case)))
    remedy = "Keep everything that determines the output in parameters, or derive it from the options."
    expect(difference == 0, f"restored from a checkpoint, its output differs by {difference:.3g}", remedy)


def trains_every_parameter(case: Case) -> None:
    """Every parameter has a finite, nonzero gradient, and gradient descent reduces the loss."""
    model, tokens = network(case), make_tokens(case)
    before, grads = _loss_and_grads(model, tokens)
    infinite = [name for name, grad in flatten(grads).items() if not mx.isfinite(grad).all().item()]
    expect(
        not infinite, f"the gradient of {', '.join(infinite[:3])} is not finite", "Check for division by 0 and log(0)."
    )
    unused = [name for name, grad in flatten(grads).items() if not mx.abs(grad).max().item()]
    remedy = "Use it, or freeze it: model.freeze(keys=[...])."
    expect(not unused, f"the loss does not depend on {', '.join(unused[:3])}", remedy)
    for _ in range(STEPS):
        model.update(_descend(model.trainable_parameters(), _loss_and_grads(model, tokens)[1]))
    after, _ = _loss_and_grads(model, tokens)
    remedy = "Check its initial weights, and that gradients reach all parts of it."
    expect(after < before, f"{STEPS} steps of gradient descent took the loss from {before:.3f} to {after:.3f}", remedy)


def _loss_and_grads(model: nn.Module, tokens: mx.array) -> tuple[float, Any]:
    """The next-token loss and its gradients, as the training loop computes them."""
    hard = tokens[:, 1:].reshape(-1)
    ones = mx.ones(hard.shape)
    targets, totals = Targets(hard, ones, 0 * ones, 0 * ones), {"hard": ones.sum()}

    def loss(parameters: Any) -> mx.array:
        model.update(parameters)
        hidden = model(tokens[:, :-1])
        rows = hidden.reshape(-1, hidden.shape[-1])
        return mixed_loss(CrossEntropy(), rows, model.head, targets, mx.array(0), {}, totals, 64)[0]

    parameters = model.trainable_parameters()
    value, grads = mx.value_and_grad(loss)(parameters)
    mx.eval(value, grads)
    model.update(parameters)
    return float(value.item()), grads  # type: ignore[arg-type]


def _descend(parameters: Any, grads: Any) -> Any:
    """The parameters after one step of gradient descent with the gradient norm clipped to 1."""
    from ..student.training.optimizers import unflatten

    flat = flatten(grads)
    norm = mx.sqrt(sum(((grad * grad).sum() for grad in flat.values()), mx.array(0.0)))
    scale = LEARNING_RATE / mx.maximum(norm, 1)
    return unflatten({name: value - scale * flat[name] for name, value in flatten(parameters).items()})
