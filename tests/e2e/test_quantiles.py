"""Quantile layers: those of the Gamma law of estimate and spread, lazily where the table is lazy."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from scipy import stats

from hadmst_sc import datasets, tl


@pytest.fixture(scope="module")
def solved():
    sdata = datasets.phantom(n_genes=3, size_um=600.0)
    tl.superresolve(sdata, "phantom_full_image", bin_um=20.0, show_progress_bar=False)
    return sdata


def test_layers_are_quantiles_of_the_rate(solved):
    names = tl.quantiles(solved, (0.05, 0.5, 0.95))
    table = solved["superres_table"]
    low, middle, high = (table.layers[name] for name in names.values())
    assert low.dtype == np.float32 and (low <= middle).all() and (middle <= high).all()
    mean, std = table.X[:, 0].astype(float), table.layers["std"][:, 0].astype(float)
    law = stats.gamma((mean / std) ** 2, scale=std**2 / mean)
    np.testing.assert_allclose(high[:, 0], law.ppf(0.95), rtol=1e-3, atol=1e-9)


def test_quantiles_come_from_any_iterable_and_once(solved):
    assert tl.quantiles(solved, (one for one in (0.1, 0.1, 0.9))) == {"0.1": "q0.1", "0.9": "q0.9"}
    layers = solved["superres_table"].layers
    assert (layers["q0.1"] <= layers["q0.9"]).all() and (layers["q0.1"] < layers["q0.9"]).any()


def test_a_doubtful_spread_is_said(solved, caplog):
    provenance = solved["superres_table"].uns["hadmst_sc"]
    kept = provenance["calibration"]
    provenance["calibration"] = {"coverage": 0.9, "n_spots": 100}
    tl.quantiles(solved)
    assert not caplog.text
    provenance["calibration"] = {"coverage": 0.5, "n_spots": 100}
    tl.quantiles(solved)
    provenance["calibration"] = kept
    assert "may be too narrow or too wide: 90% intervals hold 50% of the counts" in caplog.text


def test_lazy_tables_get_lazy_layers(solved):
    eager = solved["superres_table"].copy()
    tl.quantiles(solved)
    expected = solved["superres_table"].layers["q0.95"]
    table = solved["superres_table"]
    table.X, table.layers["std"] = da.from_array(eager.X, (50, 2)), da.from_array(eager.layers["std"], (50, 2))
    tl.quantiles(solved)
    lazy = table.layers["q0.95"]
    assert isinstance(lazy, da.Array)
    np.testing.assert_allclose(lazy.compute(), expected)
    table.X, table.layers["std"] = eager.X, eager.layers["std"]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"quantiles": (0.0, 0.5)}, ValueError, r"`quantiles` needs numbers between 0 and 1, but has \[0.0\]"),
        ({"key_added": "other"}, KeyError, "no table 'other_table'"),
    ],
)
def test_bad_arguments_are_named(solved, arguments, error, match):
    with pytest.raises(error, match=match):
        tl.quantiles(solved, **arguments)


def test_a_result_without_standard_deviation_says_how_to_get_one():
    sdata = datasets.phantom(n_genes=2, size_um=600.0)
    tl.superresolve(sdata, "phantom_full_image", bin_um=20.0, model=None, with_std=False, show_progress_bar=False)
    with pytest.raises(KeyError, match=r"has no layer 'std', because the run had `with_std=False`. Call `had"):
        tl.quantiles(sdata)
