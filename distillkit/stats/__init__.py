"""Statistics for judges, using NumPy only: confidence intervals, paired tests, agreement, variance components.

`means` has intervals of means, `paired` compares two runs, `rates` has intervals of proportions and the Bradley-Terry
model, `agreement` compares two graders, and `components` separates the noise of a judge from the variance of samples.
All computations are over clusters (a document, a prompt), because scores within a cluster are not independent.
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
