"""The layer of expected logarithms: that of the Gamma law of estimate and spread, lazily where the table is lazy."""

from __future__ import annotations

import re

import dask.array as da
import numpy as np
import pytest
import scanpy as sc
from spatialdata import read_zarr

from hadmst_sc import datasets, tl

KEY = "superres_table"


@pytest.fixture(scope="module")
def solved():
    sdata = datasets.phantom(n_genes=3, size_um=600.0)
    tl.superresolve(sdata, "phantom_full_image", bin_um=20.0, show_progress_bar=False)
    return sdata


def test_the_layer_is_the_mean_logarithm_of_sampled_rates(solved):
    assert tl.log1p(solved) == "log1p"
    table = solved[KEY]
    bins = np.argsort(table.X[:, 0])[:: table.n_obs // 9]
    mean, std = (np.asarray(values, float)[bins, 0] for values in (table.X, table.layers["std"]))
    shape = (mean / std) ** 2
    rates = np.random.default_rng(0).gamma(shape, mean / shape, (400_000, len(bins)))
    logs = np.log1p(rates)
    found, error = table.layers["log1p"][bins, 0], logs.std(0) / np.sqrt(len(logs))
    assert table.layers["log1p"].dtype == np.float32
    assert (np.abs(found - logs.mean(0)) < 4 * error + 1e-6).all()
    assert (found < np.log1p(mean) - 4 * error).any()  # the bias that it avoids is larger than what is tolerated here


def test_with_a_target_every_bin_has_the_same_depth_first(solved):
    table, certain = solved[KEY].copy(), solved["superres_std"]
    solved["superres_std"] = certain * 0
    tl.log1p(solved, target_sum=7.0)
    solved["superres_std"] = certain
    sc.pp.normalize_total(table, target_sum=7.0)
    sc.pp.log1p(table)
    np.testing.assert_allclose(solved[KEY].layers["log1p"], table.X, rtol=1e-5)
    tl.log1p(solved, target_sum=7.0)
    found = solved[KEY].layers["log1p"]
    assert (found <= table.X * (1 + 1e-5)).all() and (found < 0.9 * table.X).any()


def test_lazy_tables_get_a_lazy_layer(solved):
    tl.log1p(solved, target_sum=5.0)
    table = solved[KEY]
    expected, eager = table.layers["log1p"], table.X
    table.X = da.from_array(eager, (50, 2))
    tl.log1p(solved, target_sum=5.0)
    lazy, table.X = table.layers["log1p"], eager
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(), expected, rtol=1e-6)


def test_a_bad_target_and_a_missing_spread_are_named(solved):
    with pytest.raises(ValueError, match=r"`target_sum` needs a positive number, or None, but is 0.*target_sum=10.0"):
        tl.log1p(solved, target_sum=0)
    with pytest.raises(KeyError, match="no table 'other_table'"):
        tl.log1p(solved, key_added="other")
    sdata = datasets.phantom(n_genes=2, size_um=600.0)
    tl.superresolve(sdata, "phantom_full_image", bin_um=20.0, model=None, with_std=False, show_progress_bar=False)
    with pytest.raises(KeyError, match=r"has no layer 'std', because the run had `with_std=False`. Call `had"):
        tl.log1p(sdata)


def test_the_calls_of_the_docstring_keep_the_layer_in_a_store(tmp_path):
    path = tmp_path / "section.zarr"
    datasets.phantom(seed=1, n_genes=2, size_um=600.0).write(path)
    sdata = read_zarr(path)
    tl.superresolve(sdata, "phantom_full_image", bin_um=20.0, model=None, show_progress_bar=False)
    tl.log1p(sdata)
    calls = re.findall(r"``(sdata\.\w+\(\"superres_table\"\))``", tl.log1p.__doc__)
    assert len(calls) == 2 and all(call in tl.quantiles.__doc__ for call in calls)
    for call in calls:
        exec(call, {"sdata": sdata})
    kept = read_zarr(path)["superres_table"].layers["log1p"]
    np.testing.assert_array_equal(kept, sdata["superres_table"].layers["log1p"])
