"""Our student beside another's engine: the same weights, the same text, the same losses and steps in PyTorch."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distillkit.student import blas

blas.load()

import mlx.core as mx  # noqa: E402
from distillkit_plugins.mixers import AlphaTemperature  # noqa: E402

from distillkit.student.model.gpt import GPT, GPTConfig, initialise  # noqa: E402
from distillkit.student.training.loss import Targets, mixed_loss  # noqa: E402
from distillkit.student.training.optimizers import OptimizerGroup, flatten, is_decayed, unflatten  # noqa: E402

pytestmark = pytest.mark.peer
SHAPE = GPTConfig(vocab_size=97, layers=2, heads=2, width=16, hidden=64, context=12)


def torch_hidden(torch, weights, tokens):  # type: ignore[no-untyped-def]
    """The forward pass of a pre-norm GPT, written with PyTorch's own parts."""
    functional = torch.nn.functional

    def norm(x, name):  # type: ignore[no-untyped-def]
        return functional.layer_norm(x, (SHAPE.width,), weights[f"{name}.weight"], weights[f"{name}.bias"])

    def linear(x, name):  # type: ignore[no-untyped-def]
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    batch, length = tokens.shape
    x = weights["tokens.weight"][tokens] + weights["positions.weight"][:length]
    for i in range(SHAPE.layers):
        block = f"blocks.{i}"
        qkv = linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.qkv")
        q, k, v = (p.view(batch, length, SHAPE.heads, -1).transpose(1, 2) for p in qkv.split(SHAPE.width, dim=2))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + linear(seen.transpose(1, 2).reshape(batch, length, -1), f"{block}.attention.out")
        up = functional.gelu(linear(norm(x, f"{block}.hidden_norm"), f"{block}.up"))
        x = x + linear(up, f"{block}.down")
    return norm(x, "norm")


@pytest.mark.slow
def test_losses_gradients_and_steps_are_pytorchs(peer) -> None:  # type: ignore[no-untyped-def]
    torch = peer("torch")
    random = np.random.default_rng(0)
    tokens = random.integers(0, SHAPE.vocab_size, (3, SHAPE.context))
    hard = random.integers(0, SHAPE.vocab_size, tokens.size)
    theirs = random.normal(size=(tokens.size, SHAPE.vocab_size)).astype(np.float32)
    alpha, heat, rate = 0.3, 2.0, 1e-2

    model = GPT(SHAPE)
    initialise(model, 1)
    mixer = AlphaTemperature(AlphaTemperature.Options(alpha=alpha, temperature=heat))
    ones = mx.ones(tokens.size)
    targets = Targets(mx.array(hard), ones, ones * 0, ones, teacher_logits=mx.array(theirs))
    totals = {name: mx.array(float(tokens.size)) for name in ("hard", "soft")}
    adam = OptimizerGroup(train={"weight_decay": 0.1, "clip": 1.0})
    parameters, state = model.trainable_parameters(), adam.initial_state(model.trainable_parameters())

    def loss(parameters):  # type: ignore[no-untyped-def]
        model.update(parameters)
        hidden = model(mx.array(tokens)).reshape(-1, SHAPE.width)
        return mixed_loss(mixer, hidden, model.head, targets, mx.array(0), mixer.weights(0), totals, chunk=7)[0]

    values = flatten(parameters)
    weights = {n: torch.tensor(np.array(v), requires_grad=True) for n, v in values.items()}
    groups = [
        {
            "params": [w for n, w in weights.items() if is_decayed(n, values[n]) is kept],
            "weight_decay": decay,
        }
        for kept, decay in ((True, 0.1), (False, 0.0))
    ]
    torch_adam = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), eps=1e-8)

    for step in range(5):
        value, gradients = mx.value_and_grad(loss)(parameters)
        parameters, state, norm = adam.update(parameters, gradients, state, mx.array(rate), mx.array(step))

        hidden = torch_hidden(torch, weights, torch.tensor(tokens)).reshape(-1, SHAPE.width)
        logits = hidden @ weights["tokens.weight"].T
        log_softmax = torch.nn.functional.log_softmax
        told = torch.nn.functional.cross_entropy(logits, torch.tensor(hard))
        opinion = log_softmax(torch.tensor(theirs) / heat, -1)
        apart = torch.nn.functional.kl_div(
            log_softmax(logits / heat, -1), opinion, reduction="batchmean", log_target=True
        )
        expected = alpha * told + (1 - alpha) * heat**2 * apart
        torch_adam.zero_grad()
        expected.backward()
        torch_norm = torch.nn.utils.clip_grad_norm_(list(weights.values()), 1.0)
        torch_adam.step()

        assert math.isclose(value.item(), expected.item(), rel_tol=1e-5)
        assert math.isclose(norm.item(), torch_norm.item(), rel_tol=1e-4)
    for name, value in flatten(unflatten(flatten(parameters))).items():
        np.testing.assert_allclose(np.array(value), weights[name].detach().numpy(), rtol=2e-3, atol=2e-5)
