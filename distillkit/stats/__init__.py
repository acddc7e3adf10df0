"""Intervals, paired tests and agreement, in NumPy only: the door of a few files that know nothing of runs.

`means` gives a mean its interval, `paired` says which of two is better, `rates` counts wins, `agreement` sets two
graders side by side, `components` parts a judge's noise from the student's. What is resampled or summed is always a
cluster (a document, a prompt): scores inside one are not independent.
"""

from __future__ import annotations

from .agreement import Correlation, Kappa, spearman, weighted_kappa
from .components import Components, components
from .means import Mean, bootstrap_ratio, cluster_sums, mean_interval, ratio, weighted_mean
from .paired import (
    BETTER,
    SAME,
    WORSE,
    Difference,
    bootstrap_test,
    holm,
    paired_difference,
    paired_interval,
    sign_flip_test,
    smallest_detectable,
    verdict,
)
from .quantiles import normal_quantile, t_quantile, t_two_sided
from .rates import Strength, all_met, bradley_terry, wilson

__all__ = [
    "BETTER",
    "SAME",
    "WORSE",
    "Components",
    "Correlation",
    "Difference",
    "Kappa",
    "Mean",
    "Strength",
    "all_met",
    "bootstrap_ratio",
    "bootstrap_test",
    "bradley_terry",
    "cluster_sums",
    "components",
    "holm",
    "mean_interval",
    "normal_quantile",
    "paired_difference",
    "paired_interval",
    "ratio",
    "sign_flip_test",
    "smallest_detectable",
    "spearman",
    "t_quantile",
    "t_two_sided",
    "verdict",
    "weighted_kappa",
    "weighted_mean",
    "wilson",
]
