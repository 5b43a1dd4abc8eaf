"""Abundances of cell types as input: names, what is refused with which remedy, and the observation that is read."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import hadmst_sc as hd
from hadmst_sc.io.abundances import PARTS, abundances_of, read_spots
from hadmst_sc.section.errors import ContractError, MissingKeyError, Problems

IMAGE, KEY = "phantom_full_image", "q05_cell_abundance_w_sf"


@pytest.fixture
def sdata():
    """A phantom whose spots have abundances of four types, as cell2location names them, and other things in `obsm`."""
    found = hd.datasets.phantom(n_genes=4, size_um=600.0)
    table = found.tables["table"]
    rng = np.random.default_rng(0)
    values = pd.DataFrame(
        rng.gamma(table.X.toarray() + 0.1, 0.5), table.obs_names, [f"q05cell_abundance_w_sf_T {i}" for i in range(4)]
    )
    proportions = values.div(values.sum(axis=1), axis=0)
    table.obsm.update({"X_pca": rng.normal(size=(table.n_obs, 5)), "proportions": proportions, KEY: values})
    return found


def read(sdata, obsm_key=KEY, image_key=IMAGE, **section):
    return read_spots(sdata, image_key, obsm_key=obsm_key, problems=Problems("cannot"), **{"bin_um": 20.0} | section)


def test_abundances_are_the_counts_of_the_observation_in_the_order_of_their_columns(sdata):
    table, obs = sdata.tables["table"], read(sdata)
    assert obs.genes == ("T 0", "T 1", "T 2", "T 3")
    np.testing.assert_allclose(obs.counts, table.obsm[KEY].to_numpy()[obs.rows], atol=1 / PARTS)
    genes = hd.io.read_observation(sdata, IMAGE, bin_um=20.0)
    assert obs.spots == genes.spots and obs.source == genes.source
    assert sdata.tables["table"] is table and set(table.var_names).isdisjoint(obs.genes)
    assert read(sdata, None).genes == genes.genes


def test_genes_select_types(sdata):
    assert read(sdata, genes=["T 2", "T 0"]).genes == ("T 2", "T 0")
    assert len(read(sdata, genes=3).genes) == 3
    with pytest.raises(MissingKeyError, match="'T 9'"):
        read(sdata, genes=["T 9"])


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        (["Q05 cell_abundance-w_sf_A", "Q05 cell_abundance-w_sf_B"], ["A", "B"]),
        (["q05cell_abundance_w_sf_A", "B"], ["q05cell_abundance_w_sf_A", "B"]),
        (
            ["q05_cell_abundance_w_sf", "q05_cell_abundance_w_sf_B"],
            ["q05_cell_abundance_w_sf", "q05_cell_abundance_w_sf_B"],
        ),
        (["T_CD4", "T_CD8"], ["T_CD4", "T_CD8"]),
        ([0, 1], ["0", "1"]),
    ],
)
def test_only_the_key_is_removed_from_names_and_only_from_all(sdata, columns, names):
    table = sdata.tables["table"]
    table.obsm[KEY] = pd.DataFrame(np.ones((table.n_obs, 2)), table.obs_names, columns)
    assert abundances_of(table, "table", KEY).var.index.tolist() == names


def test_columns_of_an_array_are_numbered(sdata):
    table = sdata.tables["table"]
    table.obsm["types"] = np.asarray(table.obsm[KEY])
    assert read(sdata, "types").genes == tuple(f"types_{i}" for i in range(4))


@pytest.mark.parametrize(
    ("key", "error", "words"),
    [
        ("none", KeyError, rf"is not in `sdata\['table'\].obsm`. Available: .*'X_pca'.* Try `obsm_key='{KEY}'`"),
        ("X_pca", ValueError, rf"has values from -.* Available: .* Try `obsm_key='{KEY}'`"),
        ("spatial", ValueError, rf"2 columns without names .* Try `obsm_key='{KEY}'`"),
        ("words", ValueError, "not numbers"),
        ("huge", ValueError, "numbers from 0 to 10,000, but has values from 1 to 2e\\+04"),
        ("empty", ValueError, "0 or NaN everywhere"),
        (3, ValueError, "`obsm_key` needs a name"),
    ],
)
def test_what_is_no_abundance_is_refused(sdata, key, error, words):
    table = sdata.tables["table"]
    table.obsm["words"] = pd.DataFrame({"a": ["x"] * table.n_obs}, table.obs_names)
    table.obsm["huge"], table.obsm["empty"] = table.obsm[KEY] * 0 + 1, table.obsm[KEY] * 0
    table.obsm["huge"].iloc[0, 0] = 2e4
    with pytest.raises(error, match=words):
        read(sdata, key)
    report = hd.pp.validate(sdata, IMAGE, obsm_key=key, align=False)
    assert not report.ok and re.search(words, str(report))


@pytest.mark.parametrize("total", [1, 100])
def test_the_remedy_for_proportions_runs_and_warns(sdata, total, caplog):
    table = sdata.tables["table"]
    table.obsm["proportions"] *= total
    with pytest.raises(ValueError, match="these are proportions") as refused:
        read(sdata, "proportions")
    assign, passed = re.search(r"`(sdata\[.*?)`, then pass `(.*?)`", str(refused.value)).groups()
    exec(assign, {"sdata": sdata})
    counts = eval(f"read(sdata, {passed})", {"sdata": sdata, "read": read}).counts
    np.testing.assert_allclose(counts.sum(1), 8, rtol=1e-3)
    assert "every spot has the total 8" in caplog.text


def test_weights_that_are_hardly_cells_are_doubted(sdata, caplog):
    read(sdata)
    assert "typical spot" not in caplog.text
    sdata.tables["table"].obsm[KEY] /= 10
    read(sdata)
    assert "typical spot has" in caplog.text


@pytest.mark.parametrize("frame", [True, False])
def test_the_remedy_for_spots_without_an_estimate_runs(sdata, frame):
    table = sdata.tables["table"]
    values = table.obsm[KEY].copy()
    values.iloc[[1, 4]] = np.nan
    table.obsm[KEY] = values if frame else values.to_numpy()
    with pytest.raises(ContractError, match=r"2 of .* spots lack some") as refused:
        read(sdata)
    exec(re.search(r"`(sdata\['table'\] = .*)`", str(refused.value))[1], {"sdata": sdata, "np": np, "numpy": np})
    assert len(read(sdata).spots) == len(values) - 2


def test_spots_that_are_not_read_need_no_estimate(sdata):
    table = sdata.tables["table"]
    table.obs.iloc[1, table.obs.columns.get_loc("in_tissue")] = 0
    table.obsm[KEY].iloc[1] = np.nan
    assert np.isfinite(read(sdata).counts).all()


def test_types_of_one_name_are_refused_with_a_remedy_that_runs(sdata):
    table = sdata.tables["table"]
    table.obsm[KEY].columns = ["A", "A", "B", "C"]
    with pytest.raises(ValueError, match=r"\['A'\] occur more than once") as refused:
        read(sdata)
    exec(re.search(r"Call `(.*)`", str(refused.value))[1], {"sdata": sdata})
    assert read(sdata).genes == ("A", "B", "C")


def test_all_problems_are_raised_at_once(sdata):
    with pytest.raises(ContractError) as refused:
        read(sdata, "X_pca", image_key="none", layer="counts")
    assert [word in str(refused.value) for word in ("3 problems", "`layer`", "X_pca", "`image_key='none'`")] == [
        True
    ] * 4
