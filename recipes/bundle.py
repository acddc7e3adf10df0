"""Turn a finished run into a student that ships with the package: half-precision weights, and its tokenizer.

distillkit run recipes/tales_teacher.toml
python recipes/bundle.py tales_teacher recipes/checkpoints/tales-teacher
"""

from __future__ import annotations

import sys
from pathlib import Path

from distillkit.student import checkpoint
from distillkit.student.trained import find_checkpoint


def main(run: str, folder: Path) -> None:
    """Write the bundle, and say where it came from in its state."""
    import mlx.core as mx

    from distillkit.data.tokenizer import Tokenizer

    made, tokenizer = find_checkpoint(run)
    weights = {name: value.astype(mx.float16) for name, value in made.weights().items()}
    kept = {key: made.state[key] for key in ("step", "data", "tokenizer", "seed", "train")}
    checkpoint.save(folder, weights, None, made.student, kept)
    Tokenizer.load(tokenizer).save(folder / "tokenizer")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
