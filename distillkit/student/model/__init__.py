"""The student's network: a GPT, its layers, and its KV cache."""
