"""The comparison of several runs."""
