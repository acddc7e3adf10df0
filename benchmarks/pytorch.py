"""The same training step in PyTorch, with fused attention and fused AdamW, eager or compiled."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from problems import Problem, Teacher, learning_rate
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, heads: int, activation: str) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.hidden_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "out": nn.Linear(width, width)})
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.activation = {"gelu": functional.gelu, "relu": functional.relu}[activation]

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.attention["qkv"](self.attention_norm(x)).split(width, dim=2)
        q, k, v = (p.view(batch, length, self.heads, -1).transpose(1, 2) for p in parts)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attention["out"](attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(self.activation(self.up(self.hidden_norm(x))))


class Net(nn.Module):
    def __init__(self, config: dict[str, Any], activation: str) -> None:
        super().__init__()
        width = config["width"]
        self.tokens, self.positions = nn.Embedding(config["vocab_size"], width), nn.Embedding(config["context"], width)
        blocks = [Block(width, config["hidden"], config["heads"], activation) for _ in range(config["layers"])]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, config["vocab_size"], bias=False)
        if config.get("tied", True):
            self.out.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.out(self.norm(x))


def network(source: Problem | Teacher, device: str) -> Net:
    """A network with the problem's initial weights."""
    model = Net(source.config, source.activation)
    weights = {name: torch.tensor(value) for name, value in source.weights.items()}
    if source.config.get("tied", True):
        weights["out.weight"] = weights["tokens.weight"]
    model.load_state_dict(weights)
    source.weights.clear()
    return model.to(device)


def stepper(problem: Problem, compiled: bool = False, device: str | None = None) -> Callable[[int], float]:
    """A function that takes a training step and returns the loss before it."""
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = network(problem, device)
    teacher = network(problem.teacher, device).eval() if problem.teacher else None
    named = dict(model.named_parameters())
    decayed = [value for name, value in named.items() if value.ndim >= 2 and "positions" not in name]
    others = [value for name, value in named.items() if value.ndim < 2 or "positions" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=problem.rate, betas=(0.9, 0.95), eps=1e-8, fused=True)

    def loss_of(inputs: Tensor, hard: Tensor, weight: Tensor) -> Tensor:
        logits = model(inputs).flatten(0, 1)
        loss = (functional.cross_entropy(logits, hard.flatten(), reduction="none") * weight.flatten()).sum()
        if teacher is not None:
            with torch.no_grad():
                teacher_log = functional.log_softmax(teacher(inputs).flatten(0, 1), -1)
            student_log = functional.log_softmax(logits, -1)
            kl = functional.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(-1)
            loss = problem.alpha * loss + (1 - problem.alpha) * (kl * weight.flatten()).sum()
        return loss / weight.sum()

    loss_function = torch.compile(loss_of) if compiled else loss_of

    def step(number: int) -> float:
        inputs, hard, weight = (torch.tensor(part).to(device) for part in problem.batch(number))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(problem, number)
        loss = loss_function(inputs.long(), hard.long(), weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.item())

    return step
