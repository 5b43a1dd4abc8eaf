"""Metagenes: every molecule goes to one of them, and a gene is found again as their mixture."""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc.distillation.components import Panel
from hadmst_sc.distillation.metagenes import metagenes
from hadmst_sc.section.measurement import Measurement, discs

N_SPOTS = 144


@pytest.fixture(scope="module")
def measurement() -> Measurement:
    return discs(np.indices((12, 12)).reshape(2, -1).T * 5.0 + 2.5, 2.75, (60, 60))


@pytest.fixture(scope="module")
def truth() -> tuple[np.ndarray, np.ndarray]:
    """Amounts ``(spots, 3)`` and shares ``(genes, 3)``."""
    rng = np.random.default_rng(0)
    return rng.gamma(0.5, 2.0, (N_SPOTS, 3)), rng.dirichlet(np.full(40, 0.3), 3).T


@pytest.fixture(scope="module")
def panel(measurement, truth) -> Panel:
    amounts, shares = truth
    counts = np.random.default_rng(1).poisson(400 * amounts @ shares.T).astype(np.float32)
    counts[7] = 0  # a spot without a molecule
    counts[:, 11] = 0  # a gene without one
    return Panel(counts, measurement)


def test_counts_of_metagenes_are_those_of_the_genes(panel):
    found = metagenes(panel, 3)
    assert found.counts.shape == (N_SPOTS, 3) and found.counts.dtype == np.float32
    assert (found.counts >= 0).all() and (found.shares >= 0).all()
    np.testing.assert_allclose(found.counts.sum(1), panel.counts.sum(1), rtol=1e-4)
    np.testing.assert_allclose(found.shares.sum(0), 1, rtol=1e-5)
    assert not found.counts[7].any() and not found.shares[11].any()


def test_programmes_that_made_the_counts_are_found(panel, truth):
    found = metagenes(panel, 3)
    r = np.corrcoef(np.concatenate([found.counts.T, truth[0].T]))[:3, 3:]
    assert (r.max(0) > 0.97).all() and len(set(r.argmax(0))) == 3
    expected = found.counts @ found.shares.T
    kept = np.arange(40) != 11
    deviance = 2 * (panel.counts * np.log(np.maximum(panel.counts, 1e-9) / np.maximum(expected, 1e-9)))
    deviance += 2 * (expected - panel.counts)
    assert deviance[:, kept].mean() < 1.1  # of the order of counting noise


def test_genes_beyond_those_that_are_factorised_are_mixed_too(panel, monkeypatch):
    full = metagenes(panel, 3)
    monkeypatch.setattr("hadmst_sc.distillation.components.MAX_BASIS", 25)
    monkeypatch.setattr("hadmst_sc.distillation.components.GENES_AT_ONCE", 7)
    few = metagenes(panel, 3)
    np.testing.assert_allclose(few.counts.sum(1), panel.counts.sum(1), rtol=1e-4)
    one, other = (found.counts @ found.shares.T for found in (full, few))
    assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99


def test_the_same_section_gives_the_same_metagenes(panel):
    first, second = metagenes(panel, 4), metagenes(panel, 4)
    np.testing.assert_array_equal(first.counts, second.counts)
    np.testing.assert_array_equal(first.shares, second.shares)
