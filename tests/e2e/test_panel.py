"""Components come from many genes, so a map depends little on which other genes were asked for."""

from __future__ import annotations

import numpy as np
import pytest

import hadmst_sc as hd

IMAGE = "phantom_full_image"
HOW = {"bin_um": 20.0, "model": None, "show_progress_bar": False}


@pytest.fixture(scope="module")
def sdata():
    return hd.datasets.phantom(n_genes=40, size_um=1200.0)


def of(sdata, genes, name):
    hd.tl.superresolve(sdata, IMAGE, genes=genes, key_added=name, **HOW)
    return sdata.tables[f"{name}_table"]


@pytest.mark.torch
def test_asking_for_fewer_genes_changes_no_map(sdata):
    names = sdata.tables["table"].var_names
    few, all_genes = of(sdata, list(names[[7, 3]]), "few"), of(sdata, len(names), "all")
    for name in few.var_names:
        map_of_few, map_of_all = (np.asarray(table[:, name].X).ravel() for table in (few, all_genes))
        np.testing.assert_allclose(map_of_few, map_of_all, rtol=1e-3, atol=1e-4)
    for column in ("reliability", "dispersion", "spot_residual", "mean_counts_per_bin"):
        np.testing.assert_allclose(few.var[column], all_genes.var.loc[few.var_names, column], rtol=1e-3, atol=1e-6)
    assert few.uns["hadmst_sc"]["n_genes_of_components"] == len(names)


@pytest.mark.torch
def test_reliability_before_a_run_is_that_of_the_run(sdata):
    asked = list(sdata.tables["table"].var_names[[7, 3]])
    run = of(sdata, asked, "again").var["reliability"]
    before = hd.tl.reliability(sdata, IMAGE, genes=asked, bin_um=20.0, model=None, show_progress_bar=False)
    assert list(before.index) == asked
    np.testing.assert_allclose(before["reliability"], run, rtol=1e-5)


@pytest.mark.torch
def test_the_first_genes_of_arrays_may_be_predicted_alone(sdata):
    obs = hd.io.read_observation(sdata, IMAGE, genes=40, bin_um=20.0)
    two, whole = (hd.tl.predict(obs, model=None, n_genes=n) for n in (2, None))
    assert two.genes == obs.genes[:2] and two.mean.shape[0] == two.std.shape[0] == 2
    np.testing.assert_allclose(two.mean, whole.mean[:2], rtol=1e-5)
    with pytest.raises(ValueError, match="`n_genes` needs at most the 40 genes of `obs`, but is 41"):
        hd.tl.predict(obs, model=None, n_genes=41)
