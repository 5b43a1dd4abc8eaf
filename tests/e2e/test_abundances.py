"""Cell types in place of genes: the whole way, from abundances in `obsm` to maps, plots and further runs."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from spatialdata import deepcopy, read_zarr

import hadmst_sc as hd
from hadmst_sc.io.result import again, find_result
from hadmst_sc.section.errors import MissingKeyError

IMAGE, KEY = "phantom_full_image", "means_cell_abundance_w_sf"
HOW = {"bin_um": 20.0, "model": None, "align": False, "show_progress_bar": False}


def with_abundances(seed: int = 0, n_types: int = 4, **section):
    """A phantom whose genes are taken as types: abundances scatter around their numbers in each spot."""
    sdata = hd.datasets.phantom(seed, n_genes=n_types, depth=(1.0, 5.0), augment=False, **section)
    table = sdata.tables["table"]
    exact = table.X.toarray().astype(float)
    noisy = np.random.default_rng(seed).gamma(exact / 0.2 + 0.05, 0.2)
    table.obsm[KEY] = pd.DataFrame(
        noisy, table.obs_names, [f"meanscell_abundance_w_sf_{i}" for i in "ABCDEFGH"[:n_types]]
    )
    return sdata


@pytest.fixture(scope="module")
def solved():
    sdata = with_abundances(size_um=800.0)
    hd.tl.superresolve(sdata, IMAGE, obsm_key=KEY, **HOW)
    return sdata


def test_the_result_has_types_as_genes_and_says_where_they_came_from(solved):
    table = solved.tables["superres_table"]
    assert table.var_names.tolist() == list("ABCD")
    assert table.uns["hadmst_sc"]["obsm_key"] == KEY
    np.testing.assert_allclose(table.var["spot_counts"], solved.tables["table"].obsm[KEY].sum(), rtol=1e-3)
    assert "abundances" in hd.tl.summary(solved).facts["spots"]
    regions = hd.tl.regions(solved, "measured")
    np.testing.assert_allclose(np.asarray(regions.X).sum(0), np.asarray(table.X).sum(0), rtol=1e-4)
    found = hd.tl.reliability(solved, IMAGE, obsm_key=KEY, bin_um=20.0, model=None, align=False)
    np.testing.assert_allclose(found["reliability"], table.var["reliability"], rtol=1e-6)


def test_hard_consistency_gives_the_abundances_back(solved):
    sdata = deepcopy(solved)
    hd.tl.superresolve(sdata, IMAGE, obsm_key=KEY, consistency="hard", key_added="hard", genes=["C"], **HOW)
    obs = hd.io.read_observation(sdata, IMAGE, bin_um=20.0)
    sums = obs.measurement.matrix @ np.nan_to_num(sdata["hard"].values[0]).ravel()
    np.testing.assert_allclose(sums, sdata.tables["table"].obsm[KEY].to_numpy()[obs.rows, 2], rtol=0.02, atol=0.02)


def test_plots_show_the_abundances_at_the_spots(solved):
    axes = hd.pl.superresolve(solved, "B", panels=["spots", "map"])
    drawn = axes[0, 0].collections[0].get_array()
    bins_of_spot = np.pi * 27.5**2 / 20**2
    np.testing.assert_allclose(
        np.sort(drawn * bins_of_spot), np.sort(solved.tables["table"].obsm[KEY].iloc[:, 1]), rtol=1e-3
    )
    assert "cells per bin" in {ax.get_ylabel() for ax in axes[0, 0].figure.axes}
    hd.pl.compare(solved, ["superres"], "B")
    with pytest.raises(MissingKeyError, match=r"Pass `genes=\['A'\]`"):
        hd.pl.superresolve(solved, solved.tables["table"].var_names[0])
    without = deepcopy(solved)
    del without.tables["table"].obsm[KEY]
    with pytest.raises(MissingKeyError, match="Leave the spots out"):
        hd.pl.superresolve(without, "B")


def test_the_call_that_repeats_the_run_reads_abundances_again(solved):
    sdata = deepcopy(solved)
    call = re.search(r"`(.*)`", again(find_result(sdata, "superres")))[1]
    assert f"obsm_key={KEY!r}" in call
    before = np.asarray(sdata.tables["superres_table"].X)
    exec(call, {"hadmst_sc": hd, "sdata": sdata})
    np.testing.assert_array_equal(np.asarray(sdata.tables["superres_table"].X), before)


def test_a_store_keeps_types(tmp_path):
    sdata = with_abundances(size_um=600.0)
    sdata.write(tmp_path / "section.zarr")
    sdata = read_zarr(tmp_path / "section.zarr")
    hd.tl.superresolve(sdata, IMAGE, obsm_key=KEY, n_metagenes=None, **HOW)
    back = read_zarr(tmp_path / "section.zarr")
    assert back.tables["superres_table"].var_names.tolist() == list("ABCD")
    hd.pl.superresolve(back, "A")
    copied = hd.tl.superresolve(back, IMAGE, obsm_key=KEY, copy=True, **HOW)
    assert copied.tables["superres_table"].var_names.tolist() == list("ABCD")


def test_maps_of_types_are_closer_to_the_truth_than_the_nearest_spot():
    sdata = with_abundances(1, n_types=6, size_um=1200.0)
    hd.tl.superresolve(sdata, IMAGE, obsm_key=KEY, **HOW | {"bin_um": 10.0})
    maps, inside = sdata["superres"].values, sdata["superres_bins"].values > 0
    obs = hd.io.read_observation(sdata, IMAGE, genes=sdata.tables["table"].var_names.tolist())
    y, x = np.indices(inside.shape) + 0.5
    far = (y[..., None] - obs.measurement.centres[:, 0]) ** 2 + (x[..., None] - obs.measurement.centres[:, 1]) ** 2
    nearest = sdata.tables["table"].obsm[KEY].to_numpy()[obs.rows][far.argmin(-1)].transpose(2, 0, 1)
    truth = sdata["phantom_truth"].values
    ours, theirs = (
        [np.corrcoef(a[inside], b[inside])[0, 1] for a, b in zip(some, truth, strict=True)] for some in (maps, nearest)
    )
    assert np.mean(ours) > np.mean(theirs) + 0.1
    held = sdata.tables["superres_table"].uns["hadmst_sc"]["calibration"]["coverage"]
    assert abs(held - 0.9) < 0.06
