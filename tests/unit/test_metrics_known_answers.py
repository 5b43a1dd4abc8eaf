"""What every metric says of six maps, by hand: perfect, constant, sign-flipped, scaled, shuffled, all-zero.

log1p of the truth is ``M + D * wave`` with ``wave = ±1`` in columns ``+ - - +``. So it has two values, symmetric around
their mean, and ``wave = sqrt(2) cos(pi / 2 (x + 1/2))`` is a pure wave also beyond the mirrored border: a symmetric
window only scales it, by ``G``, which makes even the structural similarity a formula.
"""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc import metrics

SIDE = 16
EVERY = np.ones((SIDE, SIDE), bool)
M, D = 2.0, 1.0  # mean and standard deviation of log1p of the truth
LOW, HIGH = np.expm1(M - D), np.expm1(M + D)  # its two values, in counts; each in half of the bins
CONSTANT = np.expm1(M)

WAVE = np.tile([1.0, -1.0, -1.0, 1.0], SIDE // 4) * np.ones((SIDE, 1))
TRUTH = np.expm1(M + D * WAVE)[None]
MAPS = {
    "perfect": TRUTH,
    "constant": np.full_like(TRUTH, CONSTANT),
    "sign-flipped": np.expm1(M - D * WAVE)[None],
    "scaled": 2 * TRUTH,
    "shuffled": TRUTH.swapaxes(1, 2),  # the same values in rows; equal in half of the bins
    "all-zero": np.zeros_like(TRUTH),
}
NAMES = list(MAPS)


def by_name(*values: float) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("name", "expected"), list(zip(NAMES, values, strict=True)))


def test_the_truth_is_as_described():
    log = np.log1p(TRUTH[0])
    assert (log.mean(), log.std()) == pytest.approx((M, D))
    assert sorted(set(TRUTH.ravel().round(9))) == pytest.approx([LOW, HIGH])
    assert (MAPS["shuffled"] == TRUTH).mean() == 0.5


@by_name(1, 0, -1, 1, 0, 0)  # of two values, any scale is a line
def test_pearson(name, expected):
    assert metrics.pearson(MAPS[name], TRUTH, EVERY)[0] == pytest.approx(expected, abs=1e-12)


_OFF_LOW, _OFF_HIGH = np.log1p(2 * LOW) - np.log1p(LOW), np.log1p(2 * HIGH) - np.log1p(HIGH)


@by_name(0, 1, 2, np.hypot(_OFF_LOW, _OFF_HIGH) / np.sqrt(2) / D, np.sqrt(2), np.sqrt(M**2 + D**2) / D)
def test_rmse(name, expected):
    assert metrics.rmse(MAPS[name], TRUTH, EVERY)[0] == pytest.approx(expected, abs=1e-12)


def _deviance(low: float, high: float) -> float:
    """Per bin, where this is expected in place of ``LOW`` and ``HIGH``."""
    return LOW * np.log(LOW / low) + HIGH * np.log(HIGH / high) - (LOW + HIGH) + (low + high)


_OF_MEAN = _deviance((LOW + HIGH) / 2, (LOW + HIGH) / 2)


@by_name(
    0,
    _deviance(CONSTANT, CONSTANT) / _OF_MEAN,
    _deviance(HIGH, LOW) / _OF_MEAN,
    (LOW + HIGH) * (1 - np.log(2)) / _OF_MEAN,
    _deviance(HIGH, LOW) / 2 / _OF_MEAN,
    _deviance(1e-6, 1e-6) / _OF_MEAN,  # expectations are at least that
)
def test_deviance(name, expected):
    assert metrics.deviance(MAPS[name], TRUTH, EVERY)[0] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_deviance_of_the_best_constant_is_one():
    assert metrics.deviance(np.full_like(TRUTH, (LOW + HIGH) / 2), TRUTH, EVERY)[0] == pytest.approx(1)


_TAPS = np.arange(-5, 6)  # 3.5 sigma of 1.5 bins
_WEIGHTS = np.exp(-(_TAPS**2) / (2 * 1.5**2))
G = (_WEIGHTS * np.cos(np.pi / 2 * _TAPS)).sum() / _WEIGHTS.sum()
C1, C2 = (0.01 * 2 * D) ** 2, (0.03 * 2 * D) ** 2  # the truth's range is 2 D


def _ssim(mean: float, size: float, *, along: bool = True) -> float:
    """Of the truth and ``mean + size * wave``, with its wave along that of the truth or across it."""
    common = 1 - G**2  # what of a wave's variance is inside the window
    scores = []
    for own, other in [(1, 1), (-1, -1)] if along else [(1, 1), (1, -1), (-1, 1), (-1, -1)]:
        a, b = M + D * G * own, mean + size * G * other
        covariance = D * size * common if along else 0.0
        light = (2 * a * b + C1) / (a**2 + b**2 + C1)
        scores.append(light * (2 * covariance + C2) / ((D**2 + size**2) * common + C2))
    return float(np.mean(scores))


_SCALED_LOW, _SCALED_HIGH = np.log1p(2 * LOW), np.log1p(2 * HIGH)


@by_name(
    1,
    _ssim(M, 0),
    _ssim(M, -D),
    _ssim((_SCALED_LOW + _SCALED_HIGH) / 2, (_SCALED_HIGH - _SCALED_LOW) / 2),
    _ssim(M, D, along=False),
    _ssim(0, 0),
)
def test_ssim(name, expected):
    assert metrics.ssim(MAPS[name], TRUTH, EVERY)[0] == pytest.approx(expected, abs=1e-9)


# Two genes in columns and one in rows: true correlations (1, 0, 0). Turning all genes over, or all bins about together,
# leaves them as they are; giving the second gene the third one's map makes them (0, 1, 0), at -1/2 to the truth.
_ROWS = MAPS["shuffled"]
_GENES = {name: np.concatenate([maps, maps, maps.swapaxes(1, 2)]) for name, maps in MAPS.items()}
_GENES["shuffled"] = np.concatenate([TRUTH, _ROWS, TRUTH])


@by_name(1, 0, 1, 1, -0.5, 0)
def test_gene_coherence(name, expected):
    assert metrics.gene_coherence(_GENES[name], _GENES["perfect"], EVERY) == pytest.approx(expected, abs=1e-12)


@by_name(1, 0, 0, 1, 0.5, 0)  # the interval from half the map to twice it; its ends are in it
def test_coverage(name, expected):
    assert metrics.coverage(MAPS[name] / 2, MAPS[name] * 2, TRUTH, EVERY)[0] == expected


@by_name(0, (HIGH - LOW) / 2, HIGH - LOW, (LOW + HIGH) / 2, (HIGH - LOW) / 2, (LOW + HIGH) / 2)
def test_crps(name, expected):
    one, three = MAPS[name][None], np.stack([MAPS[name]] * 3)  # members that agree are one
    for draws in (one, three):
        assert metrics.crps(draws, TRUTH, EVERY)[0] == pytest.approx(expected, abs=1e-12)
    # A member at twice the map moves an even-handed error by its own distance, less half that between the two.
    both = metrics.crps(np.stack([MAPS[name], 2 * MAPS[name]]), TRUTH, EVERY)[0]
    apart = MAPS[name].mean()
    twice = np.abs(2 * MAPS[name] - TRUTH).mean()
    assert both == pytest.approx((expected + twice - apart) / 2, abs=1e-12)


_SIZE = np.sqrt((LOW**2 + HIGH**2) / 2)


@by_name(
    np.inf,
    1 / np.sqrt(((CONSTANT - LOW) ** 2 + (HIGH - CONSTANT) ** 2) / 2),
    1 / (HIGH - LOW),
    1 / _SIZE,
    np.sqrt(2) / (HIGH - LOW),
    1 / _SIZE,
)
def test_spread_over_error_of_a_spread_of_one_count(name, expected):
    assert metrics.spread_over_error(np.ones_like(TRUTH), MAPS[name], TRUTH, EVERY)[0] == pytest.approx(expected)
