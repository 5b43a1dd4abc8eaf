"""The second look: it learns what is not a sum, no spot predicts itself, and weights are fair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hadmst_sc import metrics
from hadmst_sc.distillation.genes import FLOOR, distill
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.regression import stacking
from hadmst_sc.regression.stacking import Inputs, forest, kernel_regression, stacked, weights_of
from hadmst_sc.section.measurement import degrade

GENES = np.arange(12)


@pytest.fixture(scope="module")
def phantom():
    return simulate(910_001, size_um=1600.0, n_genes=12, augment=False, depth=(2.0, 40.0))


@pytest.fixture(scope="module")
def distilled(phantom):
    return distill(phantom.observation, margin=0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def points(rng, n=400, n_bins=900):
    """Values that depend on the product of two inputs, and inputs at spots and bins."""
    at_spots, in_bins = rng.standard_normal((n, 4)), rng.standard_normal((4, n_bins)).astype(np.float32)

    def value(x):
        return np.stack([x[0] * x[1], np.abs(x[2]) - 0.8], 1)

    return value(at_spots.T), Inputs(at_spots, (in_bins[:1], in_bins[1:])), value(in_bins)


@pytest.mark.parametrize("learner", [forest, kernel_regression])
def test_a_learner_finds_what_is_no_sum_of_its_inputs(rng, learner):
    values, inputs, truth = points(rng)
    learned = learner(values, inputs)
    found = learned.predict(inputs.block(slice(None)))
    for k in range(2):
        assert np.corrcoef(found[:, k], truth[:, k])[0, 1] > 0.7
        assert np.corrcoef(learned.held_out[:, k], values[:, k])[0, 1] > 0.6


@pytest.mark.parametrize("learner", [forest, kernel_regression])
def test_noise_is_not_predicted_at_held_out_spots(rng, learner):
    _, inputs, _ = points(rng)
    noise = rng.standard_normal((400, 2))
    held_out = learner(noise, inputs).held_out
    assert ((noise - held_out) ** 2).mean() > 0.95 * (noise**2).mean()


@pytest.mark.parametrize("learner", [forest, kernel_regression])
def test_a_held_out_prediction_has_not_seen_its_spot(rng, learner, monkeypatch):
    monkeypatch.setattr(stacking, "WIDTHS", (0.7,))
    monkeypatch.setattr(stacking, "RIDGES", (0.3,))
    values, inputs, _ = points(rng)
    values -= values.mean(0)
    changed = values.copy()
    changed[7] = 1.5 * values.max(0)
    before, after = (learner(one, inputs).held_out for one in (values, changed))
    np.testing.assert_allclose(after[7], before[7], atol=1e-4)
    assert np.abs(after - before).max() > 0.01


def test_leave_one_out_of_the_kernels_is_that_of_a_refit(rng, monkeypatch):
    monkeypatch.setattr(stacking, "WIDTHS", (0.7,))
    monkeypatch.setattr(stacking, "RIDGES", (0.3,))
    values, inputs, _ = points(rng, n=50)
    fourier = stacking._fourier(inputs.at_spots)
    monkeypatch.setattr(stacking, "_fourier", lambda _: fourier)  # the features of the whole
    exact = kernel_regression(values, inputs).held_out
    for spot in (0, 17, 49):
        rest = np.arange(50) != spot
        refit = kernel_regression(values[rest], Inputs(inputs.at_spots[rest], inputs.in_bins))
        np.testing.assert_allclose(refit.predict(inputs.at_spots[[spot]])[0], exact[spot], atol=1e-4)


def test_weights_follow_the_better_prediction_and_are_never_negative(rng):
    values = rng.standard_normal((300, 3))
    good, poor = (values + noise * rng.standard_normal(values.shape) for noise in (0.3, 3.0))
    weights = weights_of([good, poor, -values], values)
    assert weights.min() >= 0
    assert weights[0] > 0.7
    assert weights[0] > weights[1] > weights[2]


def test_equal_predictions_share_equally(rng):
    values = rng.standard_normal((300, 3))
    good = values + 0.3 * rng.standard_normal(values.shape)
    weights = weights_of([good] * 4, values)
    assert np.ptp(weights) < 1e-6
    assert weights.sum() == pytest.approx(0.92, abs=0.05)  # shrunk by the noise of the prediction


def test_blocks_of_bins_change_nothing(rng, monkeypatch):
    values, inputs, _ = points(rng, n=80)
    first = [(np.zeros_like(values), np.zeros((2, 900), np.float32))]
    whole = stacked(values, first, inputs, inputs).maps
    monkeypatch.setattr(stacking, "BINS_AT_ONCE", 101)
    np.testing.assert_allclose(stacked(values, first, inputs, inputs).maps, whole, atol=1e-5)


def test_it_is_better_than_the_first_look(phantom, distilled):
    obs = phantom.observation
    first = np.exp(np.log(distilled.priors(GENES)[:, 1:4]).mean(1))
    ours, before = (
        metrics.pearson(maps * distilled.gene_mean[GENES, None, None], phantom.rate, obs.inside).mean()
        for maps in (distilled.stacked(GENES), first)
    )
    assert ours > before + 0.01


def test_totals_over_spots_are_kept_and_no_bin_is_impossible(phantom, distilled):
    obs = phantom.observation
    rates = distilled.stacked(GENES)
    assert rates.min() >= FLOOR * (1 - 1e-6)
    counts = degrade(rates * distilled.gene_mean[:, None, None], obs.measurement).sum(0)
    np.testing.assert_allclose(counts, obs.counts.sum(0), rtol=0.1)


def test_a_grey_image_and_a_single_gene_stay_finite(phantom):
    obs = phantom.observation
    one = replace(obs.subset_genes(np.array([3])), he=np.full_like(obs.he, 128))
    assert np.isfinite(distill(one, margin=0).stacked(np.array([0]))).all()


def test_few_spots_have_no_second_look(phantom):
    few = distill(phantom.observation.subset_spots(np.arange(stacking.MIN_SPOTS - 1)), margin=0)
    assert few.section.stack is None
    with pytest.raises(ValueError, match="without a second look"):
        few.stacked(GENES)


def test_priors_and_tokens_do_not_depend_on_it(phantom, distilled):
    without = distill(phantom.observation, margin=0, second_look=False)
    assert without.section.stack is None
    np.testing.assert_array_equal(without.priors(GENES), distilled.priors(GENES))
    np.testing.assert_array_equal(without.token, distilled.token)
