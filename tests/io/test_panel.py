"""Genes beside those asked for, from which components are computed too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import hadmst_sc as hd
from hadmst_sc.io import panel
from hadmst_sc.io.panel import with_other_genes

IMAGE = "phantom_full_image"


@pytest.fixture(scope="module")
def sdata():
    return hd.datasets.phantom(n_genes=40, size_um=1200.0)


def test_other_genes_follow_those_asked_for(sdata):
    table = sdata.tables["table"]
    asked = list(table.var_names[[7, 3]])
    obs = hd.io.read_observation(sdata, IMAGE, genes=asked, bin_um=20.0)
    found = with_other_genes(sdata, obs)
    assert list(found.genes[:2]) == asked and set(found.genes) == set(table.var_names)
    whole = hd.io.read_observation(sdata, IMAGE, genes=list(found.genes), bin_um=20.0)
    np.testing.assert_allclose(found.counts, whole.counts, rtol=1e-6)


def test_a_table_may_have_no_other_genes(sdata):
    obs = hd.io.read_observation(sdata, IMAGE, genes=40, bin_um=20.0)
    assert with_other_genes(sdata, obs).genes == obs.genes


def test_there_are_as_many_as_needed(sdata, monkeypatch):
    monkeypatch.setattr(panel, "N_GENES", 10)
    for asked, found in ((3, 10), (12, 12), (40, 40)):
        obs = hd.io.read_observation(sdata, IMAGE, genes=asked, bin_um=20.0)
        assert len(with_other_genes(sdata, obs).genes) == found


def test_genes_whose_values_are_no_counts_are_left_out(sdata):
    table = sdata.tables["table"].copy()
    values = table.X.toarray().astype(np.float32)
    values[0, 5], values[1, 6] = np.nan, -1
    table.X = values
    changed = replace_table(sdata, table)
    obs = hd.io.read_observation(changed, IMAGE, genes=list(table.var_names[:2]), bin_um=20.0)
    found = with_other_genes(changed, obs)
    assert set(found.genes) == set(table.var_names) - set(table.var_names[[5, 6]])


def replace_table(sdata, table):
    from spatialdata import SpatialData

    return SpatialData(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={"table": table})


def test_arrays_from_elsewhere_have_no_other_genes(sdata):
    obs = hd.io.read_observation(sdata, IMAGE, genes=2, bin_um=20.0)
    given = replace(obs, source=None)
    assert with_other_genes(sdata, given) is given
