"""Many genes by way of few: nearly what the network says gene by gene, for a part of its work."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd

import hadmst_sc as hd
from hadmst_sc import metrics
from hadmst_sc.distillation import components
from hadmst_sc.io.maps import MapStore
from hadmst_sc.models import HadmstModel
from hadmst_sc.phantom.simulate import Phantom, simulate
from hadmst_sc.section.observation import Observation

IMAGE = "phantom_full_image"
N_GENES = 96
SETTINGS = {"bin_um": 20.0, "n_metagenes": 8, "show_progress_bar": False}


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return simulate(930_001, style="glands", size_um=1600.0, n_genes=N_GENES, augment=False)


@pytest.fixture(scope="module")
def obs(phantom) -> Observation:
    return phantom.observation


@pytest.fixture(scope="module")
def by_gene(obs):
    return hd.tl.predict(obs, align=False, gate=False)


@pytest.fixture(scope="module")
def from_metagenes(obs):
    return hd.tl.predict(obs, align=False, gate=False, n_metagenes=16)


def score(maps: np.ndarray, phantom: Phantom) -> float:
    return float(metrics.pearson(maps, phantom.rate, phantom.observation.inside).mean())


def test_the_truth_is_nearly_as_near_as_gene_by_gene(obs, phantom, by_gene, from_metagenes, monkeypatch):
    closed = hd.tl.predict(obs, model=None, align=False).mean
    with monkeypatch.context() as patch:
        patch.setattr(components, "MIN_SPOTS", 10**9)  # the closed form that network and metagenes start from
        start = hd.tl.predict(obs, model=None, align=False).mean
    ours, full, first, second = (score(maps, phantom) for maps in (from_metagenes.mean, by_gene.mean, start, closed))
    assert ours - first > 0.7 * (full - first) > 0
    assert ours > second


def test_spread_is_that_of_draws_gene_by_gene(obs, by_gene, from_metagenes):
    mine, other = (found.std[:, obs.inside].mean(1) for found in (from_metagenes, by_gene))
    assert np.median(mine / other) == pytest.approx(1, abs=0.15)
    assert np.corrcoef(np.log(mine), np.log(other))[0, 1] > 0.9


def test_spots_are_agreed_with_as_gene_by_gene(by_gene, from_metagenes):
    ratio = np.median(from_metagenes.gene_stats["spot_residual"] / by_gene.gene_stats["spot_residual"])
    assert ratio == pytest.approx(1, abs=0.2)


def test_the_network_sees_metagenes_and_landmarks_only(obs, monkeypatch):
    seen, log_change = [], HadmstModel.log_change

    def counting(self, condition, token):
        seen.append(len(token))
        return log_change(self, condition, token)

    monkeypatch.setattr(HadmstModel, "log_change", counting)
    hd.tl.predict(obs, align=False, gate=False, n_metagenes=16)
    assert sum(seen) == 16 + 48


def test_held_out_spots_tell_what_it_costs(obs, caplog):
    made = hd.tl.predict(obs, align=False, n_metagenes=16).provenance
    assert made["n_metagenes"] == 16
    assert -0.05 < made["metagene_loss"] < 0.1
    assert made["gate"]["deviance"] < 1
    assert ("worse than the network gene by gene" in caplog.text) == (made["metagene_loss"] > 0.02)


def test_neither_batches_nor_the_order_of_genes_matter(obs, from_metagenes):
    order = np.random.default_rng(0).permutation(N_GENES)
    turned = hd.tl.predict(obs.subset_genes(order), align=False, gate=False, n_metagenes=16, gene_chunk=7)
    r = metrics.pearson(turned.mean, from_metagenes.mean[order], obs.inside)
    assert r.min() > 0.999  # the factorisation starts from a decomposition whose rounding depends on the order


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_metagenes": 1}, "`n_metagenes` needs a whole number of at least 2"),
        ({"n_metagenes": N_GENES}, "fewer than genes"),
        ({"n_metagenes": 8, "model": None}, "`n_metagenes` needs a network"),
        ({"n_metagenes": 8, "n_samples": 2}, "`n_samples=2`"),
    ],
)
def test_what_cannot_be_is_refused(obs, settings, message):
    with pytest.raises(ValueError, match=message):
        hd.tl.predict(obs, **settings)


@pytest.fixture
def backed(tmp_path):
    hd.datasets.phantom(seed=1, n_genes=12, size_um=800.0).write(tmp_path / "section.zarr")
    return sd.read_zarr(tmp_path / "section.zarr")


def test_a_run_cut_short_is_continued_and_workers_give_the_same(backed, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    reference = hd.tl.superresolve(backed, IMAGE, copy=True, **SETTINGS)
    write, calls = MapStore.write, []

    def limited(self, *given):
        calls.append(given)
        if len(calls) > 1:
            raise KeyError("cut short")
        write(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(MapStore, "write", limited)
        with pytest.raises(KeyError, match="cut short"):
            hd.tl.superresolve(backed, IMAGE, batch_size=4, **SETTINGS)
    with distributed.Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        hd.tl.superresolve(backed, IMAGE, client=client, **SETTINGS)
    for name in ("superres", "superres_std"):
        ours, theirs = np.asarray(backed[name].data), np.asarray(reference[name].data)
        assert np.nanmax(np.abs(ours - theirs)) <= 1e-4 * np.nanmax(theirs)
    assert [path.name for path in tmp_path.iterdir()] == ["section.zarr"]
