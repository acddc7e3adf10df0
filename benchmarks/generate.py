"""Writing by a tied student of the 53M shape, against mlx-lm's gpt2 with the same weights and the memory's limit.

    python benchmarks/generate.py [--json FILE] [--repeats 5] [--tokens 128] [--device cpu|gpu]

Both write greedily in this process, over the same BLAS, by turns; figures are medians. mlx-lm is a peer and may be
missing: then only ours is measured. Ends with 1 if the two write different tokens.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from distillkit.core import cpu
from distillkit.student import blas

FAST = blas.load()

import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

from distillkit.pipeline.bench import machine  # noqa: E402
from distillkit.student.generation.generate import generate_tokens  # noqa: E402
from distillkit.student.generation.sampling import Sampling  # noqa: E402
from distillkit.student.model.gpt import GPT, GPTConfig  # noqa: E402
from distillkit.student.training.optimizers import flatten  # noqa: E402

SHAPE = GPTConfig(50257, layers=8, heads=8, width=384, hidden=1536, context=512, tied=True, activation="gelu_tanh")
PROMPT, BATCHES = 16, (1, 16)
NAMES = {
    "tokens": "wte",
    "positions": "wpe",
    "norm": "ln_f",
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "hidden_norm": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}

Rows = list[list[int]]


def student() -> GPT:
    """A student whose random weights are large enough that it does not say one token again and again."""
    model, random = GPT(SHAPE), np.random.default_rng(0)
    matrices = {n: v.shape for n, v in flatten(model.parameters()).items() if v.ndim == 2}
    drawn = [(name, mx.array((0.05 * random.normal(size=size)).astype(np.float32))) for name, size in matrices.items()]
    model.load_weights(drawn, strict=False)
    model.eval()
    mx.eval(model.parameters())
    return model


def prompts(rows: int) -> Rows:
    drawn: Rows = np.random.default_rng(rows).integers(0, SHAPE.vocab_size, (rows, PROMPT)).tolist()
    return drawn


def ours(model: GPT, given: Rows, tokens: int) -> Rows:
    steps = generate_tokens(model, SHAPE.context, given, [0] * len(given), Sampling(0.0), 0, max_tokens=tokens)
    return [[token for token in row if token is not None] for row in zip(*steps, strict=True)]


def mlx_lm_writer(model: GPT) -> Callable[[Rows, int], Rows] | None:
    """mlx-lm's own way to write one row, and many; None where it is not installed."""
    try:
        from mlx_lm.generate import BatchGenerator, generate_step
        from mlx_lm.models.gpt2 import Model, ModelArgs
    except ImportError:
        return None
    sizes = (SHAPE.context, SHAPE.width, SHAPE.heads, SHAPE.layers, SHAPE.context)
    network = Model(ModelArgs("gpt2", *sizes, 1e-5, SHAPE.vocab_size))
    network.load_weights([(renamed(name), value) for name, value in flatten(model.parameters()).items()])
    network.eval()

    def one(given: Rows, tokens: int) -> Rows:
        return [[token for token, _ in generate_step(mx.array(row), network, max_tokens=tokens)] for row in given]

    def many(given: Rows, tokens: int) -> Rows:
        size = len(given)
        generator = BatchGenerator(network, max_tokens=tokens, prefill_batch_size=size, completion_batch_size=size)
        written: dict[int, list[int]] = {name: [] for name in generator.insert(given)}
        while responses := generator.next_generated():
            for response in responses:
                written[response.uid].append(response.token)
        return list(written.values())

    return lambda given, tokens: (one if len(given) == 1 else many)(given, tokens)


def renamed(name: str) -> str:
    """The name that mlx-lm's gpt2 has for a parameter."""
    path, kind = name.rsplit(".", 1)
    if not path.startswith("blocks."):
        return f"model.{NAMES[path]}.{kind}"
    _, block, part = path.split(".", 2)
    return f"model.h.{block}.{NAMES[part]}.{kind}"


def memory_speed(size: int) -> float:
    """Bytes a second at which memory is read at best, all cores together: each MLX stream adds up its own numbers.

    A limit is what was reached once, so the fastest time counts. Products are small ones, which the BLAS does at once.
    """
    streams = [mx.default_stream(mx.default_device())]
    if mx.default_device() == mx.cpu:
        streams += [mx.new_stream(mx.cpu) for _ in range(cpu.cores() - 1)]
    ones = mx.ones((1, 1024, 1))
    pieces = [mx.zeros((size // 4 // len(streams) // 512 // 1024, 512, 1024)) for _ in streams]
    mx.eval(ones, pieces)

    def read() -> None:
        sums = []
        for stream, piece in zip(streams, pieces, strict=True):
            with mx.stream(stream):
                sums.append(piece @ ones)
        mx.eval(sums)

    return float(sum(piece.nbytes for piece in pieces) / min(seconds(read) for _ in range(20)))


def seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def weights_read(model: GPT) -> int:
    """Bytes of weights that one step reads: all but the table of positions."""
    return sum(value.nbytes for name, value in flatten(model.parameters()).items() if name != "positions.weight")


def measured(writers: dict[str, Callable[[Rows, int], Rows]], rows: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens a second of each writer at one batch size, by turns, and whether all wrote the same."""
    given = prompts(rows)
    texts = {name: writer(given, tokens) for name, writer in writers.items()}  # warm, too
    times: dict[str, list[float]] = {name: [] for name in writers}
    for turn in range(repeats):
        for name in list(writers)[:: 1 if turn % 2 else -1]:
            times[name].append(seconds(lambda name=name: writers[name](given, tokens)))  # type: ignore[misc]
    speeds = {name: rows * tokens / statistics.median(spent) for name, spent in times.items()}
    found: dict[str, Any] = {"batch": rows, "tokens_per_second": speeds, "equal": len({*map(str, texts.values())}) == 1}
    if "mlx-lm" in times:
        found["ratio"] = statistics.median(b / a for a, b in zip(times["ours"], times["mlx-lm"], strict=True))
        found["ratios"] = [b / a for a, b in zip(times["ours"], times["mlx-lm"], strict=True)]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--device", choices=["cpu", "gpu"], help="not what MLX chooses")
    asked = parser.parse_args(arguments)
    if asked.device:
        blas.use_device(asked.device)
    model = student()
    writers: dict[str, Callable[[Rows, int], Rows]] = {"ours": lambda given, tokens: ours(model, given, tokens)}
    if theirs := mlx_lm_writer(model):
        writers["mlx-lm"] = theirs
    size = weights_read(model)
    speeds = [memory_speed(size)]
    batches = []
    for rows in BATCHES:
        batches.append(measured(writers, rows, asked.tokens, asked.repeats))
        speeds.append(memory_speed(size))
    speed = max(speeds)  # others use this machine, too
    result = {
        "machine": machine(),
        "blas": str(FAST),
        "versions": {name: version(name) for name in ("mlx", *(["mlx-lm"] if theirs else []))},
        "tokens": asked.tokens,
        "repeats": asked.repeats,
        "memory": {"bytes_a_step": size, "bytes_per_second": speed, "steps_per_second": speed / size},
        "batches": batches,
    }
    show(result)
    if asked.json:
        asked.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(batch["equal"] for batch in batches) else 1


def show(result: dict[str, Any]) -> None:
    """The figures as a table."""
    memory = result["memory"]
    print(f"{result['blas']}; {result['tokens']} tokens a row, medians of {result['repeats']}")
    print(f"memory: {memory['bytes_per_second'] / 1e9:.1f} GB/s read, {memory['bytes_a_step'] / 1e6:.0f} MB a step")
    print(f"{'batch':>5} {'ours':>9} {'mlx-lm':>9} {'ratio':>6} {'limit':>9} {'of it':>6}  tokens/s")
    for batch in result["batches"]:
        speeds, limit = batch["tokens_per_second"], batch["batch"] * memory["steps_per_second"]
        theirs = f"{speeds['mlx-lm']:9.1f} {batch['ratio']:6.2f}" if "ratio" in batch else f"{'-':>9} {'-':>6}"
        same = "" if batch["equal"] else "  DIFFERENT TOKENS"
        print(f"{batch['batch']:5} {speeds['ours']:9.1f} {theirs} {limit:9.1f} {speeds['ours'] / limit:6.0%}{same}")
    if "mlx-lm" not in result["versions"]:
        print("mlx-lm is not installed, so there is nothing to compare with: pip install mlx-lm")


if __name__ == "__main__":
    sys.exit(main())
