"""What tokenizers are made of, and how they compare."""
