"""Same seed, same answer: whatever the window, the chunk, the order of the genes or the workers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hadmst_sc.inference import estimators
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.measurement import degrade
from hadmst_sc.tl import predict


@pytest.fixture(scope="module")
def obs():
    return simulate(930_000, size_um=960.0, n_genes=5).observation


@pytest.fixture(scope="module")
def reference(obs):
    return predict(obs, n_samples=2, window=96)


def same(a, b, order=slice(None)) -> None:
    for name, genes in (("mean", order), ("std", order), ("draws", (slice(None), order))):
        x, y = getattr(a, name), getattr(b, name)[genes]
        assert np.abs(x - y).max() <= 1e-5 * np.abs(x).max()


@pytest.mark.parametrize("settings", [{"window": 32}, {"gene_chunk": 2}, {"window": 64, "gene_chunk": 1}])
def test_windows_and_chunks_do_not_change_the_answer(obs, reference, settings):
    same(reference, predict(obs, n_samples=2, **({"window": 96} | settings)))


def test_the_order_of_the_genes_does_not_change_the_answer(obs, reference):
    order = np.array([3, 1, 4, 0, 2])
    other = replace(obs, counts=obs.counts[:, order], genes=tuple(obs.genes[i] for i in order))
    same(reference, predict(other, n_samples=2, window=96), np.argsort(order))


def test_the_same_call_twice_is_identical(obs, reference):
    again = predict(obs, n_samples=2, window=96)
    np.testing.assert_array_equal(again.mean, reference.mean)
    np.testing.assert_array_equal(again.std, reference.std)
    np.testing.assert_array_equal(again.draws, reference.draws)


def test_another_seed_changes_the_samples_and_nothing_else(obs, reference):
    other = predict(obs, n_samples=2, window=96, random_state=1)
    np.testing.assert_array_equal(other.mean, reference.mean)
    np.testing.assert_array_equal(other.std, reference.std)
    assert np.abs(other.draws - reference.draws).max() > 0.01 * reference.draws.max()


def test_half_precision_as_on_a_gpu_changes_little(obs, monkeypatch):
    one = replace(obs, counts=obs.counts[:, :1], genes=obs.genes[:1])
    full = predict(one, gate=False, align=False)
    monkeypatch.setattr(estimators, "HALF_PRECISION_ON", ("cpu",))
    half = predict(one, gate=False, align=False)
    assert half.mean.dtype == np.float32
    assert 0 < np.abs(half.mean - full.mean).max() <= 1e-2 * full.mean.max()


def test_dask_workers_give_the_same_answer(obs, reference):
    distributed = pytest.importorskip("distributed")
    with distributed.Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as client:
        same(reference, predict(obs, n_samples=2, window=96, gene_chunk=2, client=client))


def test_counts_times_three_give_sums_times_three(obs):
    """Of spots; bins do not scale alike, as three times the counts are more evidence, and their map is sharper."""
    settings = {"model": None, "align": False}
    once, thrice = (replace(obs, counts=c * obs.counts) for c in (1, 3))
    hard = [degrade(predict(o, consistency="hard", **settings).mean, o.measurement) for o in (once, thrice)]
    np.testing.assert_allclose(hard[1], 3 * hard[0], rtol=0.01, atol=1e-3)


def test_mean_and_std_outside_the_tissue_are_zero(obs, reference):
    assert not reference.mean[:, ~obs.inside].any() and not reference.std[:, ~obs.inside].any()


def test_a_shifted_image_is_found_and_undone():
    moved = simulate(930_001, size_um=1600.0, n_genes=32, misregistration_um=(30.0, -20.0), augment=False).observation
    found = predict(moved, model=None).provenance["registration"]
    assert found["applied"]
    assert np.hypot(found["dy_um"] - 30, found["dx_um"] + 20) <= 10
    assert predict(moved, model=None, align=False).provenance["registration"] == "off"
