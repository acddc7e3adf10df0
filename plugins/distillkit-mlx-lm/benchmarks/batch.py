"""Measure batched generation: processor time per token for several batch sizes.

python benchmarks/batch.py MODEL [--requests 32] [--max-tokens 32] [--top 0]
"""

from __future__ import annotations

import argparse
import time

from distillkit_mlx_lm import MlxLm

from distillkit import Request

BEGINNINGS = ("Once upon a time", "The old man and the boy went", "In the morning, when the sun", "It was cold, and")


def measure(teacher: MlxLm, requests: list[Request]) -> tuple[int, float]:
    """The number of generated tokens, and the processor time in seconds."""
    started = time.process_time()
    answers = [answer for _, answer in teacher.answers(requests)]
    return sum(answer.usage.completion_tokens for answer in answers if answer.usage), time.process_time() - started


def main() -> None:
    """Print one line for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--top", type=int, default=0, help="top log-probabilities per token")
    parser.add_argument("--sizes", type=int, nargs="*", default=(1, 4, 16))
    parser.add_argument("--temperature", type=float, default=0.0)
    args = parser.parse_args()
    requests = [
        Request(str(i), BEGINNINGS[i % 4] + " and then" * (i % 7), max_tokens=args.max_tokens,
                temperature=args.temperature, seed=i, top_logprobs=args.top)
        for i in range(args.requests)
    ]  # fmt: skip
    first = 0.0
    for size in args.sizes:
        teacher = MlxLm(MlxLm.Options(model=args.model, batch_size=size))
        measure(teacher, requests[:1])  # loads the weights
        tokens, seconds = measure(teacher, requests)
        rate = tokens / seconds
        first = first or rate
        print(f"batch size {size:3}: {tokens} tokens, {rate:7.1f} tokens/s of processor time, {rate / first:.2f}x")


if __name__ == "__main__":
    main()
