"""Functions that are faster on a CPU than MLX's own."""
