"""Generation speed of a tied 53M student, against mlx-lm's gpt2 with the same weights and the bandwidth limit.

    python benchmarks/generate.py [--json FILE] [--repeats 5] [--tokens 128] [--device cpu|gpu]

Both decode greedily in this process with the same BLAS, in turn; figures are medians. If mlx-lm is not installed, only
distillkit is measured. Exits with 1 if the two generate different tokens.
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

from distillkit.pipeline.bench import describe_machine  # noqa: E402
from distillkit.student.generation.generate import generate_tokens  # noqa: E402
from distillkit.student.generation.sampling import Sampling  # noqa: E402
from distillkit.student.model.gpt import GPT, GPTConfig  # noqa: E402
from distillkit.student.training.optimizers import flatten  # noqa: E402

CONFIG = GPTConfig(50257, layers=8, heads=8, width=384, hidden=1536, context=512, tied=True, activation="gelu_tanh")
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
    """A student with random weights that are large enough for its output not to repeat one token."""
    model, random = GPT(CONFIG), np.random.default_rng(0)
    matrices = {n: v.shape for n, v in flatten(model.parameters()).items() if v.ndim == 2}
    drawn = [(name, mx.array((0.05 * random.normal(size=size)).astype(np.float32))) for name, size in matrices.items()]
    model.load_weights(drawn, strict=False)
    model.eval()
    mx.eval(model.parameters())
    return model


def prompts(rows: int) -> Rows:
    drawn: Rows = np.random.default_rng(rows).integers(0, CONFIG.vocab_size, (rows, PROMPT)).tolist()
    return drawn


def distillkit_writer(model: GPT, given: Rows, tokens: int) -> Rows:
    steps = generate_tokens(model, CONFIG.context, given, [0] * len(given), Sampling(0.0), 0, max_tokens=tokens)
    return [[token for token in row if token is not None] for row in zip(*steps, strict=True)]


def mlx_lm_writer(model: GPT) -> Callable[[Rows, int], Rows] | None:
    """A function that generates with mlx-lm, for one row or for many; None if it is not installed."""
    try:
        from mlx_lm.generate import BatchGenerator, generate_step
        from mlx_lm.models.gpt2 import Model, ModelArgs
    except ImportError:
        return None
    sizes = (CONFIG.context, CONFIG.width, CONFIG.heads, CONFIG.layers, CONFIG.context)
    network = Model(ModelArgs("gpt2", *sizes, 1e-5, CONFIG.vocab_size))
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
    """The name of a parameter in mlx-lm's gpt2."""
    path, kind = name.rsplit(".", 1)
    if not path.startswith("blocks."):
        return f"model.{NAMES[path]}.{kind}"
    _, block, part = path.split(".", 2)
    return f"model.h.{block}.{NAMES[part]}.{kind}"


def memory_speed(size: int) -> float:
    """The memory bandwidth in bytes per second of all cores together: each MLX stream sums its own array.

    As a limit, the fastest of 20 readings counts. The matrix products are small enough for the BLAS not to pack them.
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
    """The bytes of weights that one step reads: all but the position table."""
    return sum(value.nbytes for name, value in flatten(model.parameters()).items() if name != "positions.weight")


def measured(writers: dict[str, Callable[[Rows, int], Rows]], rows: int, tokens: int, repeats: int) -> dict[str, Any]:
    """Tokens per second of each writer at one batch size, measured in turn, and whether their tokens are equal."""
    given = prompts(rows)
    texts = {name: writer(given, tokens) for name, writer in writers.items()}  # a warm-up, too
    times: dict[str, list[float]] = {name: [] for name in writers}
    for turn in range(repeats):
        for name in list(writers)[:: 1 if turn % 2 else -1]:
            times[name].append(seconds(lambda name=name: writers[name](given, tokens)))  # type: ignore[misc]
    speeds = {name: rows * tokens / statistics.median(spent) for name, spent in times.items()}
    found: dict[str, Any] = {"batch": rows, "tokens_per_second": speeds, "equal": len({*map(str, texts.values())}) == 1}
    if "mlx-lm" in times:
        found["ratio"] = statistics.median(b / a for a, b in zip(times["distillkit"], times["mlx-lm"], strict=True))
        found["ratios"] = [b / a for a, b in zip(times["distillkit"], times["mlx-lm"], strict=True)]
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--device", choices=["cpu", "gpu"], help="override MLX's default device")
    options = parser.parse_args(arguments)
    if options.device:
        blas.use_device(options.device)
    model = student()
    writers: dict[str, Callable[[Rows, int], Rows]] = {
        "distillkit": lambda given, tokens: distillkit_writer(model, given, tokens)
    }
    if mlx_lm := mlx_lm_writer(model):
        writers["mlx-lm"] = mlx_lm
    size = weights_read(model)
    speeds = [memory_speed(size)]
    batches = []
    for rows in BATCHES:
        batches.append(measured(writers, rows, options.tokens, options.repeats))
        speeds.append(memory_speed(size))
    speed = max(speeds)  # other processes may slow single readings down
    result = {
        "machine": describe_machine(),
        "blas": str(FAST),
        "versions": {name: version(name) for name in ("mlx", *(["mlx-lm"] if mlx_lm else []))},
        "tokens": options.tokens,
        "repeats": options.repeats,
        "memory": {"bytes_a_step": size, "bytes_per_second": speed, "steps_per_second": speed / size},
        "batches": batches,
    }
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(batch["equal"] for batch in batches) else 1


def show(result: dict[str, Any]) -> None:
    """Print the results as a table."""
    memory = result["memory"]
    print(f"{result['blas']}; {result['tokens']} tokens per row, medians of {result['repeats']}")
    print(f"memory: {memory['bytes_per_second'] / 1e9:.1f} GB/s read, {memory['bytes_a_step'] / 1e6:.0f} MB per step")
    print(f"{'batch':>5} {'distillkit':>10} {'mlx-lm':>9} {'ratio':>6} {'limit':>9} {'of it':>6}  tokens/s")
    for batch in result["batches"]:
        speeds, limit = batch["tokens_per_second"], batch["batch"] * memory["steps_per_second"]
        peer = f"{speeds['mlx-lm']:9.1f} {batch['ratio']:6.2f}" if "ratio" in batch else f"{'-':>9} {'-':>6}"
        different = "" if batch["equal"] else "  DIFFERENT TOKENS"
        share = speeds["distillkit"] / limit
        print(f"{batch['batch']:5} {speeds['distillkit']:10.1f} {peer} {limit:9.1f} {share:6.0%}{different}")
    if "mlx-lm" not in result["versions"]:
        print("mlx-lm is not installed, so there is no comparison: pip install mlx-lm")


if __name__ == "__main__":
    sys.exit(main())
