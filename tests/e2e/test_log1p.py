"""The layer of expected logarithms: that of the Gamma law of estimate and spread, lazily where the table is lazy."""

from __future__ import annotations

import re

import dask.array as da
import numpy as np
import pytest
import scanpy as sc
from spatialdata import read_zarr

from hadmst_sc import datasets, tl
from hadmst_sc.io import contents

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
    solved["superres_std"] = certain.copy(data=certain.data * 0)  # keeps its transformations
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


@pytest.fixture
def in_a_store(tmp_path):
    sdata = datasets.phantom(seed=1, n_genes=2, size_um=600.0)
    sdata.write(tmp_path / "section.zarr")
    return read_zarr(tmp_path / "section.zarr")


@pytest.mark.parametrize("loaded", [True, False])
def test_the_lines_of_the_docstring_keep_the_layer_in_a_store(in_a_store, loaded, monkeypatch):
    sdata = in_a_store
    if not loaded:
        monkeypatch.setattr(contents, "MAX_LOADED", 100)
    tl.superresolve(sdata, "phantom_full_image", bin_um=20.0, model=None, show_progress_bar=False)
    assert isinstance(sdata[KEY].X, np.ndarray) == loaded
    before = sdata[KEY].to_memory().X
    tl.log1p(sdata)
    lines = re.findall(r"``(sdata\S+superres_table\W.*?)``", tl.log1p.__doc__)
    assert len(lines) == 3 and all(line in tl.quantiles.__doc__ for line in lines)
    for line in lines:
        exec(line, {"sdata": sdata})
    kept = read_zarr(sdata.path)[KEY]
    np.testing.assert_array_equal(kept.layers["log1p"], sdata[KEY].layers["log1p"])
    np.testing.assert_array_equal(kept.X, before)
    assert before.any()


def test_a_large_table_that_was_deleted_or_replaced_is_not_read_as_zeros(in_a_store, monkeypatch):
    sdata, how = in_a_store, {"bin_um": 20.0, "model": None, "show_progress_bar": False}
    monkeypatch.setattr(contents, "MAX_LOADED", 100)
    tl.superresolve(sdata, "phantom_full_image", **how)
    first = sdata[KEY]
    tl.superresolve(sdata, "phantom_full_image", **how, overwrite=True)
    with pytest.raises(OSError, match=r"tables/superres_table: was deleted or replaced after it was read"):
        first.X.compute()
    whole = sdata[KEY].to_memory().X
    sdata.delete_element_from_disk(KEY)
    with pytest.raises(OSError, match=r"load it: `sdata\['superres_table'\] = .*\.to_memory\(\)`"):
        sdata.write_element(KEY)
    assert whole.any()
