"""Variance components, and the smallest difference that a design detects."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from distillkit.stats import (
    components,
)

Peer = Callable[[str], ModuleType]
Rng = np.random.Generator


def nested(rng: Rng, prompts: int, samples: int, repeats: int) -> tuple[list[float], list[str], list[str]]:
    """Grades whose prompts differ by 1.5, samples by 1 and repeats by 0.5."""
    luck = rng.normal(0, 1.5, (prompts, 1, 1)) + rng.normal(0, 1, (prompts, samples, 1))
    scores = 6 + luck + rng.normal(0, 0.5, (prompts, samples, repeats))
    names = [(f"p{i}", f"p{i}#{j}") for i in range(prompts) for j in range(samples) for _ in range(repeats)]
    return scores.reshape(-1).tolist(), [p for p, _ in names], [s for _, s in names]


def test_components_are_found_again_also_where_repeats_are_missing() -> None:
    rng = np.random.default_rng(18)
    whole, gaps = [], []
    for _ in range(60):
        rows = nested(rng, 25, 4, 3)
        found = components(*rows)
        whole.append([found.prompt, found.sample, found.noise])
        kept = [i for i in range(len(rows[0])) if rng.random() < 0.7]
        some = components(*([part[i] for i in kept] for part in rows))  # type: ignore[arg-type]
        gaps.append([some.prompt, some.sample, some.noise])
    for told in (whole, gaps):
        assert np.mean(told, axis=0) == pytest.approx([2.25, 1.0, 0.25], rel=0.15)


def test_components_of_a_balanced_design_are_those_of_a_mixed_model(peer: Peer) -> None:
    models, pandas = peer("statsmodels.regression.mixed_linear_model"), peer("pandas")
    scores, prompts, samples = nested(np.random.default_rng(19), 20, 3, 2)
    frame = pandas.DataFrame({"score": scores, "prompt": prompts, "sample": samples})
    within = {"sample": "0 + C(sample)"}
    model = models.MixedLM.from_formula("score ~ 1", frame, groups="prompt", re_formula="1", vc_formula=within)
    fitted = model.fit()
    found = components(scores, prompts, samples)
    theirs = (float(fitted.cov_re.iloc[0, 0]), float(fitted.vcomp[0]), float(fitted.scale))
    assert (found.prompt, found.sample, found.noise) == pytest.approx(theirs, rel=1e-3)


def test_what_a_design_cannot_tell_is_none() -> None:
    one_grade = components([1.0, 2.0, 4.0, 3.0], ["a", "a", "b", "b"], ["a0", "a1", "b0", "b1"])
    assert one_grade.noise is None
    assert one_grade.sample == pytest.approx(0.5)  # the judge's noise is in it
    one_sample = components([1.0, 2.0, 4.0, 3.0], ["a", "a", "b", "b"], ["a0", "a0", "b0", "b0"])
    assert (one_sample.prompt, one_sample.sample, one_sample.noise) == (None, None, 0.5)
    assert one_sample.together == pytest.approx(2 - 0.5 / 2)  # of the means of a and b, less the noise in them
    assert one_sample.detectable(1) is None
    assert components([1.0, 2.0], ["a", "a"], ["a0", "a0"]).detectable(50) is None


def test_one_sample_a_prompt_still_says_what_a_design_sees_at_most() -> None:
    rng = np.random.default_rng(21)
    several, single = components(*nested(rng, 400, 3, 2)), components(*nested(rng, 400, 1, 2))
    assert single.together == pytest.approx(2.25 + 1, rel=0.15)
    assert single.detectable(50) > several.detectable(50)  # type: ignore[operator]


def test_more_repeats_help_against_noise_and_more_samples_against_both() -> None:
    found = components(*nested(np.random.default_rng(20), 50, 4, 3))
    plain, repeated, written = found.detectable(50), found.detectable(50, 1, 3), found.detectable(50, 4, 3)
    assert plain > repeated > written  # type: ignore[operator]
    assert found.detectable(200) == pytest.approx(plain / 2, rel=0.02)  # type: ignore[operator]
