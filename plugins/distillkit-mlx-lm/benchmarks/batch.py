"""What writing many answers at once is worth: processor time a token, by how many are written together.

python benchmarks/batch.py MODEL [--requests 32] [--max-tokens 32] [--top 0]
"""

from __future__ import annotations

import argparse
import time

from distillkit_mlx_lm import MlxLm

from distillkit import Request

BEGINNINGS = ("Once upon a time", "The old man and the boy went", "In the morning, when the sun", "It was cold, and")


def measure(teacher: MlxLm, requests: list[Request]) -> tuple[int, float]:
    """How many tokens were written, in how many seconds of processor time."""
    begun = time.process_time()
    answers = [answer for _, answer in teacher.answers(requests)]
    return sum(answer.usage.completion_tokens for answer in answers if answer.usage), time.process_time() - begun


def main() -> None:
    """One line for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--top", type=int, default=0, help="log-probabilities a token")
    parser.add_argument("--sizes", type=int, nargs="*", default=(1, 4, 16))
    parser.add_argument("--temperature", type=float, default=0.0)
    told = parser.parse_args()
    requests = [
        Request(str(i), BEGINNINGS[i % 4] + " and then" * (i % 7), max_tokens=told.max_tokens,
                temperature=told.temperature, seed=i, top_logprobs=told.top)
        for i in range(told.requests)
    ]  # fmt: skip
    first = 0.0
    for size in told.sizes:
        teacher = MlxLm(MlxLm.Options(model=told.model, batch_size=size))
        measure(teacher, requests[:1])  # reads the weights
        tokens, seconds = measure(teacher, requests)
        rate = tokens / seconds
        first = first or rate
        print(f"{size:3} at once: {tokens} tokens, {rate:7.1f} a second of processor time, {rate / first:.2f} times")


if __name__ == "__main__":
    main()
