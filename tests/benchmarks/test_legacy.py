"""Known answers of the scores that published tables use, among them those for which they are not used here.

The truth is one bright column in seven: every window of 7 × 7 bins then has the mean 1/7, the variance 6/49 and the
sample variance 6/48, which makes the structural similarity one number that can be written down.
"""

from __future__ import annotations

import numpy as np
import pytest

SHAPE = (14, 21)
EVERY = np.ones(SHAPE, bool)
C1, C2 = 0.01**2, 0.03**2


def truth() -> np.ndarray:
    maps = np.zeros((1, *SHAPE))
    maps[..., ::7] = 5.0
    return maps


MAPS = {
    "perfect": lambda t: t,
    "constant": lambda t: np.full_like(t, 2.0),
    "sign-flipped": lambda t: t.max() - t,
    "scaled": lambda t: 2 * t,
    "shuffled": lambda t: np.roll(t, 3, axis=2),  # columns change places
    "all-zero": lambda t: np.zeros_like(t),
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("perfect", 0.0),
        ("constant", np.sqrt(1 / 7)),
        ("sign-flipped", 1.0),
        ("scaled", 0.0),
        ("shuffled", np.sqrt(2 / 7)),
        ("all-zero", np.sqrt(1 / 7)),
    ],
)
def test_legacy_rmse(name, expected):
    from legacy import legacy_rmse

    assert legacy_rmse(MAPS[name](truth()), truth(), EVERY) == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("perfect", 1.0),
        ("constant", 0.0),
        ("sign-flipped", 1.0),  # the opposite of the truth
        ("scaled", 1.0),
        ("shuffled", 1 / 6),  # -1/6, in truth: covariance -1/49 over variance 6/49
        ("all-zero", 0.0),
    ],
)
def test_legacy_pcc(name, expected):
    from legacy import legacy_pcc

    assert legacy_pcc(MAPS[name](truth()), truth(), EVERY) == pytest.approx([expected], abs=1e-12)


def _ssim(mean: float, variance: float, covariance: float) -> float:
    """Similarity of the truth and a map of this mean, variance and covariance with it in every window."""
    light = (2 * mean / 7 + C1) / (mean**2 + 1 / 49 + C1)
    return light * (2 * covariance + C2) / (variance + 1 / 8 + C2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("perfect", 1.0),
        ("constant", _ssim(0, 0, 0)),
        ("sign-flipped", _ssim(6 / 7, 1 / 8, -1 / 8)),
        ("scaled", 1.0),
        ("shuffled", _ssim(1 / 7, 1 / 8, -1 / 48)),
        ("all-zero", _ssim(0, 0, 0)),
    ],
)
def test_legacy_ssim(name, expected):
    from legacy import legacy_ssim

    assert legacy_ssim(MAPS[name](truth()), truth(), EVERY) == pytest.approx([expected], abs=1e-9)


def test_two_empty_maps_agree_and_nothing_is_nan():
    from legacy import legacy_pcc, legacy_rmse, legacy_ssim

    empty, flat = np.zeros((1, *SHAPE)), np.full((1, *SHAPE), 3.0)
    for a, b in ((empty, empty), (flat, empty), (empty, flat)):
        assert (legacy_rmse(a, b, EVERY), legacy_ssim(a, b, EVERY), legacy_pcc(a, b, EVERY)) == (0, 1, 0)


def test_the_background_is_part_of_the_score_and_dilutes_it():
    from legacy import legacy_rmse

    inside = EVERY.copy()
    inside[:7] = False  # half of each column: half of the squared error is gone
    polluted = np.where(inside, MAPS["shuffled"](truth()), 99.0)
    assert legacy_rmse(polluted, truth(), inside) == pytest.approx(np.sqrt(1 / 7))


def test_the_all_zero_map_beats_the_true_rate_on_sparse_counts_under_legacy_rmse_only():
    """One bin in fifty holds a molecule or more. The rate they were drawn from is the best that can be predicted."""
    from legacy import legacy_rmse

    from hadmst_sc import metrics

    inside = np.ones((60, 60), bool)
    y, x = np.indices(inside.shape)
    rate = 0.02 * (1.05 + np.sin(y / 6) * np.cos(x / 6))[None]
    counts = np.random.default_rng(0).poisson(rate).astype(float)
    nothing = np.zeros_like(rate)
    assert legacy_rmse(nothing, counts, inside) < 0.16 < 0.5 < legacy_rmse(rate, counts, inside)
    assert metrics.deviance(rate, counts, inside) < 1 < metrics.deviance(nothing, counts, inside)
    assert metrics.pearson(rate, counts, inside) > 0 == metrics.pearson(nothing, counts, inside)


def test_maps_of_other_shapes_are_named():
    from legacy import legacy_rmse

    with pytest.raises(ValueError, match="need one shape"):
        legacy_rmse(truth()[:, 1:], truth(), EVERY)
