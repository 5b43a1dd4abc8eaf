"""Totals of regions: of a column, of polygons and of circles, with intervals that know what bins share."""

from __future__ import annotations

import importlib
import logging

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity, Scale, get_transformation

import hadmst_sc as hd


@pytest.fixture(scope="module")
def solved():
    sdata = hd.datasets.phantom(n_genes=3, size_um=600.0)
    hd.tl.superresolve(sdata, "phantom_full_image", bin_um=20.0, model=None, align=False, show_progress_bar=False)
    table = sdata.tables["superres_table"]
    sides = np.where(table.obs["array_col"] < 20, "left", "right").astype(object)
    sides[table.obs["array_row"] < 3] = None
    table.obs["side"] = pd.Categorical(sides, categories=["right", "left", "nowhere"])
    return sdata


def test_a_column_gives_the_sums_of_its_categories_in_their_order(solved):
    table, found = solved.tables["superres_table"], hd.tl.regions(solved, "side")
    assert found.obs_names.tolist() == ["right", "left", "nowhere"]
    assert found.var_names.equals(table.var_names)
    for name, row in zip(found.obs_names[:2], found.X, strict=False):
        bins = np.asarray(table.X)[(table.obs["side"] == name).to_numpy()]
        np.testing.assert_allclose(row, bins.sum(0), rtol=1e-5)
        assert found.obs.loc[name, "n_bins"] == len(bins)
    assert found.obs["n_bins"].iloc[2] == 0 and np.isnan(found.layers["std"][2]).all()


def test_the_interval_is_around_the_total_and_relatively_narrower_than_that_of_a_bin(solved):
    table, found = solved.tables["superres_table"], hd.tl.regions(solved, "side")[:2]
    assert (found.layers["low"] < found.X).all() and (found.X < found.layers["high"]).all()
    bins = np.median(np.asarray(table.layers["std"]) / np.asarray(table.X), 0)
    assert (found.layers["std"] / found.X < 0.3 * bins).all()
    alone = np.sqrt((np.asarray(table.layers["std"], float) ** 2)[(table.obs["side"] == "left").to_numpy()].sum(0))
    assert (found.layers["std"][1] > alone).all()  # bins share errors


def test_shapes_of_single_bins_give_the_table_back(solved):
    table, name = solved.tables["superres_table"], hd.tl.bins_to_shapes(solved)
    found = hd.tl.regions(solved, name)
    np.testing.assert_allclose(found.X, np.asarray(table.X), rtol=1e-5)
    np.testing.assert_allclose(found.layers["std"], np.asarray(table.layers["std"]), rtol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_a_bin_on_the_border_counts_by_its_share(solved, factor):
    """A square of 2.5 bins, in the pixels of the image or in those of another that are four times as small."""
    px = solved.tables["superres_table"].uns["hadmst_sc"]["px_per_bin"]
    square = shapely.affinity.scale(shapely.box(10, 10, 12.5, 12.5), px * factor, px * factor, origin=(0, 0))
    transformations = {"phantom": Scale([1 / factor] * 2, ("x", "y")) if factor > 1 else Identity()}
    solved.shapes["drawn"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=[square]), transformations=transformations)
    found, image = hd.tl.regions(solved, "drawn"), np.nan_to_num(np.asarray(solved["superres"].data))
    weights = np.array([1, 1, 0.5])
    expected = np.einsum("gyx,y,x->g", image[:, 10:13, 10:13], weights, weights)
    np.testing.assert_allclose(found.X[0], expected, rtol=1e-4)
    assert found.obs["n_bins"].iloc[0] == pytest.approx(6.25)


def test_circles_are_regions(solved):
    found = hd.tl.regions(solved, "phantom")  # the spots
    assert found.n_obs == len(solved.shapes["phantom"])
    area = np.pi / 4 * (55 / 20) ** 2
    assert found.obs["n_bins"].max() == pytest.approx(area, rel=0.02)
    counts = np.asarray(solved["table"][:, found.var_names].X.todense(), float)
    whole = (found.obs["n_bins"] > 0.95 * area).to_numpy()
    assert found.uns["spatialdata_attrs"]["region"] == "phantom"
    solved["totals"] = found  # a table that annotates the spots
    del solved["totals"]
    assert np.corrcoef(found.X[whole].ravel(), counts[whole].ravel())[0, 1] > 0.8


def test_a_doubtful_spread_is_said(solved, caplog, monkeypatch):
    provenance = solved["superres_table"].uns["hadmst_sc"]
    monkeypatch.setitem(provenance, "calibration", {"coverage": 0.5, "n_spots": 100})
    hd.tl.regions(solved, "side")
    assert "intervals of sums over bins may be too narrow or too wide: 90% intervals hold 50%" in caplog.text


def test_what_cannot_be_is_refused(solved):
    with pytest.raises(KeyError, match=r"`key='cells'` needs a column of tables/superres_table or .*Add a column"):
        hd.tl.regions(solved, "cells")
    far = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=[shapely.box(-9, -9, -8, -8)]), transformations={"phantom": Identity()}
    )
    solved.shapes["far"] = far
    with pytest.raises(ValueError, match=r"`key='far'` needs a region in the tissue"):
        hd.tl.regions(solved, "far")
    del solved.shapes["far"]
    other = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)]), transformations={"other": Identity()}
    )
    solved.shapes["elsewhere"] = other
    with pytest.raises(
        KeyError, match=r"shapes/elsewhere: shares no coordinate system with the result.*set_transformation"
    ):
        hd.tl.regions(solved, "elsewhere")
    del solved.shapes["elsewhere"]


def test_a_table_without_its_dispersion_says_how_to_get_it(solved):
    table = solved.tables["superres_table"]
    kept = table.var.pop("dispersion")
    try:
        with pytest.raises(KeyError, match=r"`var` lacks 'dispersion'\. Call `hadmst_sc"):
            hd.tl.regions(solved, "side")
    finally:
        table.var["dispersion"] = kept


def test_the_interval_holds_the_estimate_where_next_to_nothing_is_expected(solved):
    sliver = shapely.box(100, 100, 100.01, 100.01)
    solved.shapes["tiny"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=[sliver]), transformations={"phantom": Identity()}
    )
    found = hd.tl.regions(solved, "tiny")
    assert (found.layers["low"] <= found.X).all() and (found.X <= found.layers["high"]).all()


def test_outlines_that_cross_themselves_are_regions(solved):
    px = solved.tables["superres_table"].uns["hadmst_sc"]["px_per_bin"]
    bow_tie = shapely.Polygon([(10 * px, 10 * px), (14 * px, 14 * px), (14 * px, 10 * px), (10 * px, 14 * px)])
    solved.shapes["tie"] = ShapesModel.parse(
        gpd.GeoDataFrame(geometry=[bow_tie]), transformations={"phantom": Identity()}
    )
    assert hd.tl.regions(solved, "tie").obs["n_bins"].iloc[0] == pytest.approx(8)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (lambda table: table.obs["covered"], "needs a column of categories, but holds measurements"),
        (
            lambda table: pd.Series([1, "1"] * (table.n_obs // 2) + [1] * (table.n_obs % 2), dtype=object).to_numpy(),
            "'1'",
        ),
    ],
)
def test_columns_that_are_no_regions_are_refused(solved, column, message):
    table = solved.tables["superres_table"]
    table.obs["odd"] = column(table)
    with pytest.raises(ValueError, match=message):
        hd.tl.regions(solved, "odd")
    del table.obs["odd"]


def test_a_name_of_two_things_is_refused(solved):
    table = solved.tables["superres_table"]
    table.obs["phantom"] = "all"
    with pytest.raises(ValueError, match=r"is a column of tables/superres_table and the name of shapes. Rename"):
        hd.tl.regions(solved, "phantom")
    del table.obs["phantom"]


def test_blocks_of_genes_change_nothing(solved, monkeypatch):
    import importlib

    expected = hd.tl.regions(solved, "side")
    monkeypatch.setattr(importlib.import_module("hadmst_sc.tl.regions"), "GENES_AT_ONCE", 2)
    found = hd.tl.regions(solved, "side")
    np.testing.assert_allclose(found.X, expected.X)
    np.testing.assert_allclose(found.layers["std"], expected.layers["std"])


def test_shapes_of_a_table_that_lost_bins_are_warned_of(solved, caplog):
    sdata = SpatialData(images=dict(solved.images), labels=dict(solved.labels))
    table = solved["superres_table"]
    sdata["superres_table"] = table[table.obs["measured"]].copy()
    places = get_transformation(sdata["superres_bins"], get_all=True)
    sdata["drawn"] = ShapesModel.parse(np.array([[12.0, 12.0]]), geometry=0, radius=4.0, transformations=places)
    hd.tl.regions(sdata, "drawn")
    assert f"has {table.obs['measured'].sum()} of the {table.n_obs} bins of 'superres'" in caplog.text


def test_too_many_shapes_are_refused(solved, monkeypatch):
    name = hd.tl.bins_to_shapes(solved)
    module = importlib.import_module("hadmst_sc.tl.regions")
    monkeypatch.setattr(module, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=rf"`key='{name}'`: 3 genes of .* shapes would be a table of .* GB"):
        hd.tl.regions(solved, name)


def test_what_was_drawn_on_an_image_that_registration_moved_is_warned_of(caplog, tmp_path):
    sdata = hd.datasets.phantom(3, n_genes=16, misregistration_um=(30.0, -20.0))
    how = {"bin_um": 20.0, "model": None, "show_progress_bar": False}
    with caplog.at_level(logging.INFO):
        hd.tl.superresolve(sdata, "phantom_full_image", **how)
    assert "the H&E was off its spots and moved to them" in caplog.text
    places = get_transformation(sdata["phantom_full_image"], get_all=True)
    sdata["drawn"] = ShapesModel.parse(np.array([[200.0, 200.0]]), geometry=0, radius=20.0, transformations=places)
    calls = (
        lambda: hd.tl.regions(sdata, "drawn"),
        lambda: hd.tl.to_cells(sdata, "drawn"),
        lambda: hd.io.export(sdata, tmp_path / "bins.h5ad", overwrite=True),
    )
    for call in calls:
        caplog.clear()
        call()
        assert "does not lie on it. Call `" in caplog.text and "align='spots'" in caplog.text
    hd.tl.superresolve(sdata, "phantom_full_image", align="spots", overwrite=True, **how)  # the remedy
    for call in calls:
        caplog.clear()
        call()
        assert "does not lie on it" not in caplog.text


def test_dates_in_var_do_not_stop_a_run_at_its_end(tmp_path):
    sdata = hd.datasets.phantom(n_genes=3, size_um=600.0)
    sdata["table"].var["curated"] = pd.to_datetime(["2024-01-01", "2024-02-01", None])
    hd.tl.superresolve(sdata, "phantom_full_image", bin_um=40.0, model=None, align=False, show_progress_bar=False)
    sdata["superres_table"].write_h5ad(tmp_path / "bins.h5ad")
    gene = sdata["table"].var_names[0]
    assert sdata["superres_table"].var["curated"].astype(str)[gene] == "2024-01-01"
