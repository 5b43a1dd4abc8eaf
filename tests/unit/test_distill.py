"""The closed form: leave-one-out is honest, components decode to genes, and bad images do no harm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hadmst_sc.distillation import components
from hadmst_sc.distillation.genes import FLOOR, PRIORS, TOKEN, distill, gamma_shape
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.features import CLIP_SD, MAX_EXTRAPOLATION, he_features, separate_stains, stain_vectors
from hadmst_sc.section.measurement import degrade, pool
from hadmst_sc.section.observation import Observation


@pytest.fixture(scope="module")
def phantom():
    return simulate(910_000, size_um=1400.0, n_genes=16, augment=False, depth=(2.0, 40.0))


@pytest.fixture(scope="module")
def distilled(phantom):
    return distill(phantom.observation, margin=0)


def pcc(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    return (a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1))


def test_joint_prior_beats_each_of_its_parts_on_a_phantom(phantom, distilled):
    inside = phantom.observation.inside
    truth = phantom.rate[:, inside]
    priors = distilled.priors(np.arange(16))
    score = {name: pcc(priors[:, i][:, inside], truth).mean() for i, name in enumerate(PRIORS)}
    assert score["joint"] > max(score["he"], score["space"]) - 0.005
    assert score["joint"] > 0.45


def test_leave_one_out_r2_agrees_with_spots_that_were_really_left_out(phantom, distilled):
    obs = phantom.observation
    fold = np.random.default_rng(0).integers(0, 5, len(obs.spots))
    roots = np.sqrt(obs.counts / obs.measurement.area[:, None] / distilled.gene_mean)
    predicted = np.zeros_like(roots)
    for k in range(5):
        rest = distill(obs.subset_spots(fold != k), margin=0)
        maps = rest.priors(np.arange(16))[:, 2] * (rest.gene_mean / distilled.gene_mean)[:, None, None]
        predicted[fold == k] = np.sqrt(pool(maps, obs.measurement))[fold == k]
    r2 = 1 - ((roots - predicted) ** 2).mean(0) / roots.var(0)
    assert distilled.r2[2].mean() == pytest.approx(r2.mean(), abs=0.08)


def test_a_held_out_spot_has_no_part_in_its_own_prediction():
    """With as many components as genes, loadings that had seen the spot would say what it counted."""
    obs = simulate(1, size_um=700.0, n_genes=40, bin_um=20.0, augment=False).observation
    whole = distill(obs, second_look=False)
    refitted = np.zeros(obs.counts.shape)
    for spot in range(len(obs.spots)):
        rest = distill(obs.subset_spots(np.arange(len(obs.spots)) != spot), second_look=False)
        joint = rest.priors(np.arange(40))[:, PRIORS.index("joint")]
        maps = joint * rest.gene_mean[:, None, None]
        refitted[spot] = degrade(maps, obs.measurement)[spot]

    def agreement(predicted: np.ndarray) -> float:
        return float(pcc(np.log1p(obs.counts.T), np.log1p(predicted.T)).mean())

    found = whole.held_out(slice(None), "joint")
    assert agreement(found) == pytest.approx(agreement(refitted), abs=0.03)  # 0.13 above it if the spot were seen


def test_totals_over_spots_are_kept(phantom, distilled):
    obs = phantom.observation
    for prior in range(3):
        maps = distilled.priors(np.arange(16))[:, prior] * distilled.gene_mean[:, None, None]
        np.testing.assert_allclose(degrade(maps, obs.measurement).sum(0), obs.counts.sum(0), rtol=0.05)


def test_some_priors_of_a_crop_are_a_part_of_all(distilled):
    genes, crop = np.array([3, 5]), (slice(8, 40), slice(4, 50))
    names = ("spread", "joint")
    whole = distilled.priors(genes)[:, [PRIORS.index(name) for name in names]]
    np.testing.assert_array_equal(distilled.priors(genes, names, crop), whole[(..., *crop)])
    np.testing.assert_array_equal(distilled.stacked(genes, crop), distilled.stacked(genes)[(..., *crop)])


def test_gene_order_and_subset_do_not_change_a_genes_priors(distilled):
    both = distilled.priors(np.array([3, 5]))
    np.testing.assert_allclose(distilled.priors(np.array([5]))[0], both[1], rtol=1e-5)
    np.testing.assert_allclose(distilled.priors(np.array([5, 3]))[1], both[0], rtol=1e-5)


def test_scaling_the_counts_scales_the_mean_and_nothing_else(phantom, distilled):
    obs = phantom.observation
    more = distill(replace(obs, counts=obs.counts * 3), margin=0)
    np.testing.assert_allclose(more.gene_mean, 3 * distilled.gene_mean, rtol=1e-5)
    np.testing.assert_allclose(more.priors(np.arange(4))[:, 2], distilled.priors(np.arange(4))[:, 2], rtol=0.01)


def test_priors_are_finite_and_above_their_floor(distilled):
    priors = distilled.priors(np.arange(16))
    assert np.isfinite(priors).all() and priors[:, :3].min() >= FLOOR * (1 - 1e-6)
    assert distilled.token.shape == (16, len(TOKEN))


@pytest.mark.parametrize("image", ["constant", "grey", "black", "noise"])
def test_an_image_that_says_nothing_leaves_kriging(phantom, image):
    obs = phantom.observation
    rng = np.random.default_rng(0)
    he = {
        "constant": np.full_like(obs.he, 200),
        "grey": np.repeat(rng.integers(0, 255, (1, *obs.he.shape[1:]), np.uint8), 3, 0),
        "black": np.zeros_like(obs.he),
        "noise": rng.integers(0, 255, obs.he.shape, np.uint8),
    }[image]
    blind = distill(replace(obs, he=he), margin=0)
    priors = blind.priors(np.arange(16))
    assert np.isfinite(priors).all()
    truth = phantom.rate[:, obs.inside]
    joint, space = (pcc(priors[:, i][:, obs.inside], truth).mean() for i in (2, 1))
    assert joint > space - 0.03


def test_all_zero_gene_and_all_zero_spot_stay_finite(phantom):
    obs = phantom.observation
    counts = obs.counts.copy()
    counts[:, 0] = 0
    counts[5] = 0
    out = distill(replace(obs, counts=counts), margin=0)
    assert np.isfinite(out.priors(np.arange(16))).all() and np.isfinite(out.token).all()


def test_single_spot_is_enough(phantom):
    out = distill(phantom.observation.subset_spots(np.array([10])), margin=0)
    assert np.isfinite(out.priors(np.arange(16))).all()


def test_gamma_shape_recovers_the_law_it_was_drawn_from():
    rng = np.random.default_rng(0)
    expected = rng.gamma(4.0, 5.0, (4000, 2))
    counts = rng.poisson(expected * rng.gamma([3.0, 30.0], [1 / 3, 1 / 30], expected.shape))
    np.testing.assert_allclose(gamma_shape(counts, expected), [3, 30], rtol=0.2)


def test_stain_vectors_are_found_in_a_mixture_of_two():
    rng = np.random.default_rng(0)
    truth = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    density = rng.gamma(0.5, 0.8, (20_000, 2)) @ truth
    found = stain_vectors(density)
    assert (np.abs((found * truth).sum(1)) > 0.995).all()


def test_features_are_standardised_on_the_spots(phantom):
    obs: Observation = phantom.observation
    spots = pool(he_features(obs), obs.measurement)
    assert np.abs(spots.mean(0)).max() < 0.3  # clipping moves the mean of heavy-tailed textures
    assert spots.std(0).max() <= 1 + 1e-5


def test_no_feature_varies_much_more_between_bins_than_between_spots(phantom):
    obs: Observation = phantom.observation
    maps = he_features(obs)
    assert maps[:, obs.inside].std(1).max() <= MAX_EXTRAPOLATION + 1e-4
    assert np.abs(maps).max() <= CLIP_SD


def test_brightness_of_the_image_does_not_move_the_stain_maps(phantom):
    obs = phantom.observation
    inside = np.repeat(np.repeat(obs.inside, obs.he_per_bin, 0), obs.he_per_bin, 1)
    darker = np.exp(np.log((obs.he + 1) / 256) * 0.8) * 256 - 1
    h0, _ = separate_stains(obs.he, inside)
    h1, _ = separate_stains(darker.round().clip(0, 255).astype(np.uint8), inside)
    assert np.corrcoef(h0[inside], h1[inside])[0, 1] > 0.98
    assert np.percentile(h1[inside], 99) == pytest.approx(1, abs=1e-3)


def test_coexpression_is_a_correlation_that_does_not_depend_on_the_order_of_genes(phantom, distilled):
    loadings = distilled.coexpression(np.arange(16))
    assert (np.linalg.norm(loadings, axis=1) <= 1 + 1e-6).all()
    roots = distilled.panel.roots(slice(None))
    measured = np.corrcoef(roots.T)[np.triu_indices(16, 1)]
    predicted = (loadings @ loadings.T)[np.triu_indices(16, 1)]
    assert np.corrcoef(measured, predicted)[0, 1] > 0.9
    order = np.random.default_rng(0).permutation(16)
    obs = phantom.observation
    turned = replace(obs, counts=obs.counts[:, order], genes=tuple(obs.genes[i] for i in order))
    np.testing.assert_allclose(distill(turned, margin=0).coexpression(np.argsort(order)), loadings, atol=1e-5)


def test_genes_taken_in_blocks_give_what_they_give_at_once(phantom, distilled, monkeypatch):
    monkeypatch.setattr(components, "GENES_AT_ONCE", 5)
    again = distill(phantom.observation, margin=0)
    np.testing.assert_allclose(again.token, distilled.token, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(again.priors(np.arange(16)), distilled.priors(np.arange(16)), rtol=1e-3)


def test_a_gene_outside_the_basis_is_decoded_from_those_inside(phantom, distilled, monkeypatch):
    monkeypatch.setattr(components, "MAX_BASIS", 12)
    few = distill(phantom.observation, margin=0)
    roots = distilled.panel.roots(slice(None))
    order = np.argsort(-roots.var(0) * distilled.gene_mean)  # beside counting noise, which is the same for all
    outside = order[12:]
    assert few.r2[2][outside].mean() > distilled.r2[2][outside].mean() - 0.1
    truth = phantom.rate[outside][:, phantom.observation.inside]
    found, full = (pcc(d.priors(outside)[:, 2][:, phantom.observation.inside], truth) for d in (few, distilled))
    assert found.mean() > full.mean() - 0.1
