"""Reliability against what is known: genes that can be foretold, noise, genes too rare for single spots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hadmst_sc.distillation.genes import distill
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.observation import RELIABILITY
from hadmst_sc.trust import reliability as module
from hadmst_sc.trust.reliability import (
    block_bootstrap,
    correlations,
    n_within_reach,
    neighbour_means,
    reliability,
    summed_correlation,
)

N_REAL = 12


@pytest.fixture(scope="module")
def section():
    """Genes of a phantom, and after them as many that are the same with their spots shuffled: noise."""
    obs = simulate(seed=3, style="glands", size_um=1600.0, n_genes=N_REAL, depth=(2.0, 40.0), augment=False).observation
    order = np.random.default_rng(0).permutation(len(obs.spots))
    counts = np.concatenate([obs.counts, obs.counts[order]], 1)
    return replace(obs, counts=counts, genes=tuple(f"g{i}" for i in range(2 * N_REAL)))


@pytest.fixture(scope="module")
def found(section):
    return reliability(distill(section))


def test_columns_are_complete_and_in_bounds(section, found):
    assert set(found) == set(RELIABILITY) and all(len(column) == len(section.genes) for column in found.values())
    assert (found["reliability_low"] <= found["reliability"] + 0.02).all()
    assert (found["reliability"] <= found["reliability_high"] + 0.02).all()
    assert (np.abs(found["reliability"]) <= 1).all()


def test_genes_of_the_tissue_are_believed_and_shuffled_ones_are_not(found):
    real, noise = found["reliability"][:N_REAL], found["reliability"][N_REAL:]
    assert np.median(real) > 0.4 and np.abs(noise).max() < 0.25
    assert np.isnan(found["finest_um"][N_REAL:]).all() and not found["image_helps"][N_REAL:].any()
    assert (found["finest_um"][:N_REAL] == 55.0).sum() >= N_REAL // 2


def test_reliability_is_the_correlation_of_a_refit_without_the_spots(section, found):
    """In whole folds, where leave-one-out is exact for single spots: close, and no better."""
    fold = np.random.default_rng(1).permutation(len(section.spots)) % 5
    foretold = np.zeros(section.counts.shape)
    for k in range(5):
        given = distill(section.subset_spots(fold != k))
        maps = given.priors(np.arange(len(section.genes)))[:, 2] * given.gene_mean[:, None, None]
        hidden = section.measurement.subset(fold == k)
        foretold[fold == k] = hidden.matrix @ maps.reshape(len(maps), -1).T
    refit = correlations(np.ones((1, len(fold))), section.counts.astype(float), foretold)[0]
    np.testing.assert_allclose(found["reliability"][:N_REAL], refit[:N_REAL], atol=0.12)


def test_without_an_image_nothing_is_gained(section):
    blind = reliability(distill(section, use_he=False))
    assert not blind["image_helps"].any() and np.abs(blind["gain_over_interpolation"][:N_REAL]).max() < 0.02


def test_a_gene_too_rare_for_single_spots_is_supported_by_averages(section):
    rng = np.random.default_rng(2)
    thin = replace(section, counts=rng.binomial(section.counts.astype(int), 0.1).astype(np.float32))
    rare, deep = (reliability(distill(one)) for one in (thin, section))
    both = np.isfinite(rare["finest_um"][:N_REAL])
    assert (rare["finest_um"][:N_REAL][both] >= deep["finest_um"][:N_REAL][both]).all()
    assert (rare["finest_um"][:N_REAL][both] > 55.0).any()


def test_the_order_of_genes_and_blocks_of_them_do_not_matter(section, found, monkeypatch):
    order = np.random.default_rng(4).permutation(len(section.genes))
    monkeypatch.setattr("hadmst_sc.distillation.components.GENES_AT_ONCE", 5)
    other = reliability(distill(section.subset_genes(order)))
    np.testing.assert_allclose(other["reliability"], found["reliability"][order], atol=1e-4)


def test_correlations_are_those_of_numpy_on_log_counts():
    rng = np.random.default_rng(0)
    x, y, w = rng.poisson(3.0, (50, 2)).astype(float), rng.gamma(2.0, 1.0, (50, 2)), np.ones((1, 50))
    expected = [np.corrcoef(np.log1p(x[:, i]), np.log1p(y[:, i]))[0, 1] for i in range(2)]
    np.testing.assert_allclose(correlations(w, x, y)[0], expected)
    w[0, :25] = 2
    twice = np.r_[np.arange(25), np.arange(50)]
    expected = [np.corrcoef(np.log1p(x[twice, i]), np.log1p(y[twice, i]))[0, 1] for i in range(2)]
    np.testing.assert_allclose(correlations(w, x, y)[0], expected)
    assert correlations(w, np.ones((50, 1)), y[:, :1])[0, 0] == 0


def test_resampling_draws_whole_blocks_as_often_as_there_are():
    spots = np.stack(np.meshgrid(np.arange(20.0), np.arange(20.0)), -1).reshape(-1, 2)
    weights = block_bootstrap(spots, 0)
    assert weights.shape == (module.N_RESAMPLES + 1, 400) and (weights[0] == 1).all()
    block = (spots // module.BLOCK_PITCHES) @ [100, 1]
    for one in np.unique(block):
        assert (np.ptp(weights[:, block == one], axis=1) == 0).all()
    assert (weights[1:].sum(1) == 400).all()


def test_neighbours_are_the_next_spots_and_not_the_spot_itself():
    spots = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), -1).reshape(-1, 2)
    mean = neighbour_means(spots).toarray()
    middle = int(np.flatnonzero((spots == 2).all(1))[0])
    assert np.flatnonzero(mean[middle]).size == 4 and mean[middle, middle] == 0
    np.testing.assert_allclose(mean.sum(1), 1)


@pytest.mark.parametrize(("step", "shift", "expected"), [((0.866, 1.0), 0.5, (7, 19)), ((1.0, 1.0), 0.0, (5, 13))])
def test_spots_within_a_reach_are_those_of_the_lattice_noisy_or_not(step, shift, expected):
    spots = np.array([(step[0] * i, step[1] * j + shift * (i % 2)) for i in range(25) for j in range(25)])
    for noise in (0.0, 0.01):
        noisy = spots + np.random.default_rng(0).normal(0, noise, spots.shape)
        assert (n_within_reach(noisy, 1), n_within_reach(noisy, 2)) == expected


def test_counts_taken_together_lose_noise_and_nothing_else():
    rng = np.random.default_rng(0)
    spots = np.stack(np.meshgrid(np.arange(60.0), np.arange(60.0)), -1).reshape(-1, 2)
    rate = 0.5 * np.exp(np.sin(spots[:, 0] / 8) + np.cos(spots[:, 1] / 8))[:, None]
    counts, noise = rng.poisson(rate).astype(float), rng.poisson(0.5, rate.shape).astype(float)
    seen = np.corrcoef(rate[:, 0], counts[:, 0])[0, 1]
    means = np.stack([counts[np.abs(spots - spot).max(1) <= 1].mean() for spot in spots])  # of nine spots
    together = summed_correlation(np.array([seen]), counts, neighbour_means(spots), 9)[0]
    assert seen < 0.75 and together == pytest.approx(np.corrcoef(rate[:, 0], means)[0, 1], abs=0.05)
    assert summed_correlation(np.array([0.2]), noise, neighbour_means(spots), 19)[0] < 0.5
