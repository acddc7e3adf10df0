"""Judging: prompts for samples, judges' protocols, and tests of the judges themselves (anchors, calibration)."""
