"""Known answers of every metric."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from hadmst_sc import metrics

SHAPE = (16, 20)


@pytest.fixture
def truth() -> np.ndarray:
    return np.random.default_rng(0).gamma(1.5, 2, (4, *SHAPE))


@pytest.fixture
def inside() -> np.ndarray:
    mask = np.zeros(SHAPE, bool)
    mask[2:14, 3:18] = True
    return mask


def mirrored(truth: np.ndarray) -> np.ndarray:
    """Log maps turned upside down about their largest value: correlation exactly -1."""
    log = np.log1p(truth)
    return np.expm1(log.max() - log)


def shuffled(truth: np.ndarray) -> np.ndarray:
    flat = truth.reshape(len(truth), -1)
    return np.random.default_rng(1).permuted(flat, axis=1).reshape(truth.shape)


def test_pearson_of_the_truth_is_one_of_its_mirror_minus_one_and_of_a_constant_zero(truth, inside):
    assert metrics.pearson(truth, truth, inside) == pytest.approx(1)
    assert metrics.pearson(mirrored(truth), truth, inside) == pytest.approx(-1)
    for constant in (0.0, 0.1, 1 / 3):
        assert (metrics.pearson(np.full_like(truth, constant), truth, inside) == 0).all()
    assert (metrics.pearson(truth, np.zeros_like(truth), inside) == 0).all()


def test_pearson_is_that_of_numpy_on_log_counts_inside(truth, inside):
    guess = shuffled(truth)
    expected = [np.corrcoef(np.log1p(g[inside]), np.log1p(t[inside]))[0, 1] for g, t in zip(guess, truth, strict=True)]
    np.testing.assert_allclose(metrics.pearson(guess, truth, inside), expected, atol=1e-12)
    assert abs(np.mean(expected)) < 0.1


def test_maps_and_flat_bins_score_alike(truth, inside):
    guess, flat = shuffled(truth), truth[:, inside]
    every = np.ones(flat.shape[1], bool)
    for metric in (metrics.pearson, metrics.rmse, metrics.deviance):
        np.testing.assert_array_equal(metric(guess[:, inside], flat, every), metric(guess, truth, inside))


@pytest.mark.parametrize(
    "score",
    [
        metrics.pearson,
        metrics.rmse,
        metrics.ssim,
        metrics.deviance,
        lambda p, t, i: metrics.crps(np.stack([p, 2 * p]), t, i),
        lambda p, t, i: metrics.spread_over_error(p, p, t, i),
    ],
)
def test_the_background_never_matters(truth, inside, score):
    guess = shuffled(truth)
    polluted = np.where(inside, guess, 99.0)
    np.testing.assert_array_equal(score(polluted, np.where(inside, truth, 7.0), inside), score(guess, truth, inside))


def test_rmse_is_zero_for_the_truth_and_one_for_the_mean_of_its_logs(truth, inside):
    assert (metrics.rmse(truth, truth, inside) == 0).all()
    mean = np.expm1(np.log1p(truth[:, inside]).mean(1))[:, None, None] * np.ones(SHAPE)
    assert metrics.rmse(mean, truth, inside) == pytest.approx(1)
    # Mirrored about their mean, logs are off by twice the deviation.
    log = 5 + np.random.default_rng(8).uniform(-1, 1, truth.shape)
    mirror = 2 * log[:, inside].mean(1)[:, None, None] - log
    assert metrics.rmse(np.expm1(mirror), np.expm1(log), inside) == pytest.approx(2)


def test_rmse_counts_scale_and_the_zero_map_is_not_rewarded(truth, inside):
    log = np.log1p(truth[:, inside])
    expected = np.sqrt((log**2).mean(1)) / log.std(1)
    np.testing.assert_allclose(metrics.rmse(np.zeros_like(truth), truth, inside), expected)
    assert (expected > 1).all()
    assert (metrics.rmse(3 * truth, truth, inside) > 0.5).all()


def test_rmse_of_a_constant_truth_is_zero_or_infinite(inside):
    empty = np.zeros((1, *SHAPE))
    assert metrics.rmse(empty, empty, inside) == 0
    assert metrics.rmse(empty + 1, empty, inside) == np.inf


def test_ssim_is_one_for_the_truth_and_falls_when_shuffled_or_mirrored(truth, inside):
    assert metrics.ssim(truth, truth, inside) == pytest.approx(1)
    assert (metrics.ssim(shuffled(truth), truth, inside) < 0.5).all()
    assert (metrics.ssim(mirrored(truth), truth, inside) < 0).all()


def test_ssim_is_the_formula_with_a_gaussian_window_and_the_truths_range(truth, inside):
    """Wang et al. 2004, Eq. 13, on log1p maps; the prediction's range is another."""
    guess = 3 * shuffled(truth)[:1]
    x, y = (np.where(inside, np.log1p(m[0]), 0.0) for m in (guess, truth))
    c1, c2 = ((k * np.ptp(np.log1p(truth[0][inside]))) ** 2 for k in (0.01, 0.03))
    mean = partial(gaussian_filter, sigma=1.5, truncate=3.5)
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    local = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert metrics.ssim(guess, truth[:1], inside)[0] == pytest.approx(local[inside].mean(), abs=1e-9)


def test_ssim_does_not_take_columns_for_channels(truth, inside):
    turned = [m.swapaxes(-1, -2) for m in (shuffled(truth), truth, inside)]
    np.testing.assert_allclose(metrics.ssim(*turned), metrics.ssim(shuffled(truth), truth, inside))


def test_ssim_of_a_constant_truth_is_one_or_zero(inside):
    flat = np.ones((1, *SHAPE))
    assert metrics.ssim(flat, flat, inside)[0] == 1
    assert metrics.ssim(2 * flat, flat, inside)[0] == 0


def test_ssim_data_range_is_the_truths_so_scaling_the_prediction_costs(truth, inside):
    assert (metrics.ssim(truth, truth, inside) > metrics.ssim(2 * truth, truth, inside) + 0.02).all()


def test_gene_coherence_is_one_for_the_truth_minus_one_for_opposites_and_zero_for_constants(inside):
    rng = np.random.default_rng(2)
    base = rng.standard_normal((2, *SHAPE))
    truth = np.expm1(5 + np.stack([base[0], base[0] + 0.1 * base[1], -base[0], base[1]]))
    assert metrics.gene_coherence(truth, truth, inside) == pytest.approx(1)
    assert metrics.gene_coherence(np.ones_like(truth), truth, inside) == 0
    order = [0, 2, 1, 3]  # genes 1 and 2 swapped: the friend of gene 0 becomes its enemy
    assert metrics.gene_coherence(truth[order], truth, inside) < 0


def test_deviance_is_zero_for_the_counts_and_one_for_their_mean(inside):
    counts = np.random.default_rng(3).poisson(3.0, (3, *SHAPE)).astype(float)
    mean = counts[:, inside].mean(1)
    flat = mean[:, None, None] * np.ones(SHAPE)
    assert metrics.deviance(counts, counts, inside) == pytest.approx(0, abs=1e-5)
    assert metrics.deviance(flat, counts, inside) == pytest.approx(1)
    assert metrics.deviance(flat, counts, inside, baseline=mean) == pytest.approx(1)
    assert (metrics.deviance(2 * flat, counts, inside) > 1).all()
    assert metrics.deviance(2 * flat, counts, inside, baseline=2 * mean) == pytest.approx(1)
    assert (metrics.deviance(np.zeros_like(flat), counts, inside) > 10).all()


def test_deviance_is_that_of_the_formula():
    counts, expected = np.array([[0.0, 1.0, 4.0]]), np.array([[1.0, 1.0, 2.0]])
    ours = 2 * ((1 - 0) + 0 + (4 * np.log(2) - 2))
    mean = 5 / 3
    theirs = 2 * (mean + (np.log(1 / mean) - 1 + mean) + (4 * np.log(4 / mean) - 4 + mean))
    assert metrics.deviance(expected, counts, np.ones(3, bool))[0] == pytest.approx(ours / theirs)


def test_deviance_of_an_absent_gene_is_zero_when_predicted_absent_else_infinite(inside):
    none = np.zeros((1, *SHAPE))
    assert metrics.deviance(none, none, inside) == 0
    assert metrics.deviance(none + 0.1, none, inside) == np.inf


def test_the_true_rate_has_the_least_deviance(truth, inside):
    counts = np.random.default_rng(4).poisson(truth).astype(float)
    best = metrics.deviance(truth, counts, inside)
    for factor in (0.7, 1.4):
        assert (metrics.deviance(factor * truth, counts, inside) > best).all()
    assert (metrics.deviance(shuffled(truth), counts, inside) > best).all()


def test_coverage_counts_the_bins_in_the_interval_ends_included():
    truth = np.arange(10.0)[None]
    every = np.ones(10, bool)
    assert metrics.coverage(np.full((1, 10), 2.0), np.full((1, 10), 5.0), truth, every)[0] == 0.4
    assert metrics.coverage(truth, truth, truth, every)[0] == 1


def test_crps_of_one_member_is_the_absolute_error_and_of_exact_members_zero(truth, inside):
    assert metrics.crps(truth[None] + 2, truth, inside) == pytest.approx(2)
    assert metrics.crps(np.stack([truth] * 3), truth, inside) == pytest.approx(0)


def test_crps_is_that_of_the_pairwise_formula(truth, inside):
    draws = np.random.default_rng(5).gamma(1.5, 2, (5, *truth.shape))
    spread = np.abs(draws[:, None] - draws[None]).sum((0, 1)) / (2 * 5 * 4)
    expected = (np.abs(draws - truth).mean(0) - spread)[:, inside].mean(1)
    np.testing.assert_allclose(metrics.crps(draws, truth, inside), expected)


def test_crps_of_a_gaussian_is_its_closed_form():
    """For X ~ N(0, 1) and truth 0 the score is (sqrt(2) - 1) / sqrt(pi)."""
    draws = np.random.default_rng(6).standard_normal((50, 1, 4000))
    assert metrics.crps(draws, np.zeros((1, 4000)), np.ones(4000, bool))[0] == pytest.approx(
        (np.sqrt(2) - 1) / np.sqrt(np.pi), abs=0.005
    )


def test_spread_over_error_is_one_when_the_std_is_the_error_and_scales_with_it(truth, inside):
    error = np.random.default_rng(7).standard_normal(truth.shape)
    std = np.abs(error)
    assert metrics.spread_over_error(std, truth + error, truth, inside) == pytest.approx(1)
    assert metrics.spread_over_error(std / 2, truth + error, truth, inside) == pytest.approx(0.5)
    assert (metrics.spread_over_error(0 * std, truth, truth, inside) == 1).all()
    assert (metrics.spread_over_error(std, truth, truth, inside) == np.inf).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, t, i: (p[:, 1:], t, i), r"`predicted` needs shape"),
        (lambda p, t, i: (p[1:], t, i), r"needs the 4 genes of `truth`, but has 3"),
        (lambda p, t, i: (p, t, np.zeros_like(i)), r"`inside` needs at least one bin"),
        (lambda p, t, i: (p, t, i.astype(float)), r"`inside` bool"),
        (lambda p, t, i: (p * np.nan, t, i), r"finite values, but has 720"),
        (lambda p, t, i: (p - 9, t, i), r"need to be 0 or more"),
    ],
)
@pytest.mark.parametrize("metric", [metrics.pearson, metrics.rmse, metrics.ssim, metrics.deviance])
def test_bad_maps_are_named(truth, inside, metric, change, message):
    with pytest.raises(ValueError, match=message):
        metric(*change(truth, truth, inside))


def test_ssim_and_coherence_name_what_is_too_small(truth):
    with pytest.raises(ValueError, match=r"at least 11 × 11 bins, but has shape \(5, 5\)"):
        metrics.ssim(truth[:, :5, :5], truth[:, :5, :5], np.ones((5, 5), bool))
    with pytest.raises(ValueError, match="at least 3 genes, but has 2"):
        metrics.gene_coherence(truth[:2], truth[:2], np.ones(SHAPE, bool))
