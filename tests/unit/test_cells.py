"""Cells: their areas on the grid are exact, the spots judge how far expression follows them, and counts are divided."""

from __future__ import annotations

import importlib
import re
from dataclasses import replace

import dask.dataframe as dd
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel, PointsModel, ShapesModel
from spatialdata.transformations import (
    Affine,
    Identity,
    Scale,
    Sequence,
    Translation,
    get_transformation,
    set_transformation,
)

import hadmst_sc as hd
from hadmst_sc.distillation.cells import Strength, Support, strength
from hadmst_sc.distillation.genes import distill
from hadmst_sc.inference.prepare import prepare
from hadmst_sc.inference.settings import Settings
from hadmst_sc.io import result
from hadmst_sc.io.cells import cells_of, on_bins, overlap
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.cells import Cells
from hadmst_sc.section.errors import ContractError, MissingKeyError, Problems
from hadmst_sc.section.measurement import degrade

IMAGE = "phantom_full_image"
QUIET = {"show_progress_bar": False, "model": None}


@pytest.fixture(scope="module")
def section():
    """A phantom, its bins of 20 µm, and circles of 8 µm at the places of its cells."""
    drawn = simulate(7, size_um=800.0, bin_um=20.0, n_genes=4, misregistration_um=0.0)
    sdata = hd.datasets.phantom(7, size_um=800.0, n_genes=4, misregistration_um=0.0)
    transformations = get_transformation(sdata[IMAGE], get_all=True)
    xy = drawn.cell_um[:, ::-1] / 2.5
    sdata["nuclei"] = ShapesModel.parse(xy, geometry=0, radius=4 / 2.5, transformations=transformations)
    return sdata


@pytest.fixture
def copied(section):
    """The same section, to be changed."""
    parts = {kind: dict(getattr(section, kind)) for kind in ("images", "labels", "shapes", "points", "tables")}
    return SpatialData(**parts)


def _read(sdata, key, bin_um=20.0):
    obs = hd.io.read_observation(sdata, IMAGE, bin_um=bin_um)
    problems = Problems("no")
    found = cells_of(sdata, key, obs, problems)
    problems.raise_if_any()
    return obs, found


def test_areas_are_exact():
    square, triangle = shapely.box(0.5, 0.5, 2.5, 1.5), shapely.Polygon([(3, 3), (4, 3), (3, 4)])
    found = overlap(gpd.GeoSeries([square, triangle, shapely.box(9, 9, 12, 12)]), (5, 5)).toarray().reshape(3, 5, 5)
    expected = np.zeros((3, 5, 5))
    expected[0, :2, :3] = np.outer([0.5, 0.5], [0.5, 1, 0.5])
    expected[1, 3, 3] = 0.5
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_areas_are_the_same_however_many_shapes_are_read_at_once(monkeypatch):
    low = np.random.default_rng(0).uniform(-1, 9, (50, 2))
    shapes = gpd.GeoSeries(shapely.box(*low.T, *(low + 1.3).T))
    expected = overlap(shapes, (8, 8)).toarray()
    monkeypatch.setattr("hadmst_sc.io.cells.SHAPES_AT_ONCE", 7)
    np.testing.assert_array_equal(overlap(shapes, (8, 8)).toarray(), expected)


def test_a_shape_with_a_hole_and_one_that_crosses_itself():
    ring = shapely.box(0, 0, 2, 2).difference(shapely.box(0.5, 0.5, 1.5, 1.5))
    bow = shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)])
    found = overlap(on_bins(gpd.GeoSeries([ring, bow]), np.eye(3)), (2, 2))
    np.testing.assert_allclose(found.sum(1), [3.0, 2.0])


def test_circles_polygons_and_labels_of_the_same_cells_agree(copied):
    _, circles = _read(copied, "nuclei")
    element = copied["nuclei"]
    transformations = get_transformation(element, get_all=True)
    outlines = gpd.GeoDataFrame(geometry=element.geometry.buffer(element["radius"]), index=element.index)
    copied["polygons"] = ShapesModel.parse(outlines, transformations=transformations)
    _, polygons = _read(copied, "polygons")
    np.testing.assert_allclose(polygons.overlap.toarray(), circles.overlap.toarray(), atol=1e-12)
    fine = 8  # pixels of labels per pixel of the image
    side = copied[IMAGE]["scale0"].sizes["y"] * fine
    y, x = np.mgrid[:side, :side]
    labels = np.zeros((side, side), np.int32)
    centres = np.c_[element.geometry.x, element.geometry.y] * fine
    chosen = [10, 200, 333]  # apart, so that they do not overlap
    for number in chosen:
        labels[np.hypot(x + 0.5 - centres[number, 0], y + 0.5 - centres[number, 1]) <= 4 / 2.5 * fine] = number + 1
    copied["labels"] = Labels2DModel.parse(
        labels, dims=("y", "x"), transformations={"phantom": Scale([1 / fine] * 2, axes=("x", "y"))}
    )
    _, found = _read(copied, "labels")
    assert found.ids.tolist() == [number + 1 for number in chosen]
    np.testing.assert_allclose(found.overlap.toarray(), circles.overlap[chosen].toarray(), atol=0.01)


def test_points_count_one_in_their_bin(copied):
    element = copied["nuclei"]
    xy = np.c_[element.geometry.x, element.geometry.y]
    transformations = get_transformation(element, get_all=True)
    copied["points"] = PointsModel.parse(xy, transformations=transformations)
    obs, found = _read(copied, "points")
    expected = np.zeros(obs.grid.n_bins)
    x, y = np.floor(xy * 2.5 / 20).astype(int).T
    np.add.at(expected, y * obs.grid.shape[1] + x, 1)
    np.testing.assert_array_equal(found.density, expected)
    assert not found.areal


def test_a_transformation_of_the_cells_counts(copied):
    _, expected = _read(copied, "nuclei")
    element = copied["nuclei"]
    turned = element.set_geometry(gpd.points_from_xy(element.geometry.y * 2, element.geometry.x * 2), crs=None)
    turned["radius"] = element["radius"] * 2
    back = Affine([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 1]], ("x", "y"), ("x", "y"))
    copied["turned"] = ShapesModel.parse(pd.DataFrame(turned).pipe(gpd.GeoDataFrame), transformations={"phantom": back})
    _, found = _read(copied, "turned")
    np.testing.assert_allclose(found.overlap.toarray(), expected.overlap.toarray(), atol=1e-9)


def test_cells_that_say_nothing_change_nothing():
    obs, cells, _ = planted_section(0.0)
    without, given = (hd.tl.predict(obs, model=None, align=False, cells=one) for one in (None, cells))
    assert given.provenance["strength_of_cells"]["used"] == 0
    np.testing.assert_array_equal(given.mean, without.mean)


def test_one_warning_says_what_became_of_the_cells(caplog, monkeypatch):
    obs, cells, _ = planted_section(0.0)
    settings = Settings(model=None, align=False, cells=cells)
    for learned, told, untold in (
        (Strength(0.0, -0.2, 0.3), "no sign that expression follows", "too few to tell"),
        (Strength(0.2, 0.1, 0.3), "too few to tell", "no sign that expression follows"),
    ):
        caplog.clear()
        monkeypatch.setattr("hadmst_sc.inference.prepare.strength", lambda *_, learned=learned: learned)
        prepare(obs, settings)
        assert told in caplog.text and untold not in caplog.text


def planted_section(strength):
    """A section of 12 genes that follow cells at random places, the cells, and the true rate."""
    rng = np.random.default_rng(0)
    drawn = simulate(3, size_um=2000.0, bin_um=20.0, n_genes=12, misregistration_um=0.0, augment=False)
    obs, n = drawn.observation, 3600
    where = rng.integers(0, obs.grid.n_bins, n)
    points = sparse.coo_array((np.ones(n), (np.arange(n), where)), (n, obs.grid.n_bins)).tocsr()
    cells = Cells("points", np.arange(n), points, areal=False)
    rate = np.full((12, *obs.grid.shape), 8.0) * obs.inside * Support.of(cells, obs.inside, 20.0).factor(strength)
    counts = rng.poisson(degrade(rate, obs.measurement)).astype(np.float32)
    return replace(obs, counts=counts), cells, rate.astype(np.float32)


@pytest.mark.parametrize("planted", [0.0, 0.4, 0.9])
def test_the_spots_find_how_far_expression_follows_the_cells(planted):
    obs, cells, _ = planted_section(planted)
    relative = Support.of(cells, obs.inside, 20.0).relative
    found = strength(relative, obs, distill(obs, second_look=False))
    assert abs(found.measured - planted) < 0.1 and found.error < 0.1
    assert found.used == pytest.approx(np.clip(1.8 * (found.measured - 0.12), 0, 1), abs=0.05)


def test_with_few_spots_the_strength_is_the_usual_one(section):
    obs, cells = _read(section, "nuclei")
    few = obs.subset_spots(np.arange(4))
    support = Support.of(cells, few.inside, 20.0)
    found = strength(support.relative, few, distill(few, second_look=False))
    assert 0.0 <= found.used <= 1.0 and np.isfinite(found.measured)


def test_cells_and_background_are_the_map(copied):
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, cells_key="nuclei", **QUIET)
    table = copied.tables["superres_table"]
    record = table.uns["hadmst_sc"]
    assert record["cells"] == "nuclei" and record["align"] == "spots"
    assert 0 <= record["strength_of_cells"]["used"] <= 1
    cells = hd.tl.to_cells(copied, "nuclei")
    total = np.asarray(table.X, float).sum(0)
    np.testing.assert_allclose(np.nansum(cells.X, 0) + cells.var["background"], total, rtol=1e-5)
    assert (cells.var["background"] > 0).all()
    assert cells.n_obs == len(copied["nuclei"])
    known = cells[~np.isnan(cells.X[:, 0])]
    assert (known.layers["low"] <= known.X + 1e-9).all() and (known.X <= known.layers["high"] + 1e-9).all()
    assert known.obs["covered"].between(0, 1).all()
    copied.tables["cells"] = cells  # annotates the circles
    assert cells.uns["spatialdata_attrs"]["region"] == "nuclei"


def test_each_gene_is_read_once_and_no_other(copied, monkeypatch):
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, **QUIET)
    at_bins, read = result.at_bins, []

    def counted(maps, *place):
        read.append(len(maps))
        return at_bins(maps, *place)

    monkeypatch.setattr(result, "at_bins", counted)
    monkeypatch.setattr(importlib.import_module("hadmst_sc.tl.regions"), "GENES_AT_ONCE", 2)
    whole = hd.tl.to_cells(copied, "nuclei")
    assert sorted(read) == [2, 2]
    some = hd.tl.to_cells(copied, "nuclei", genes=["visible_000"])
    assert sorted(read) == [1, 2, 2]
    np.testing.assert_array_equal(some.X, whole[:, "visible_000"].X)
    np.testing.assert_array_equal(some.layers["high"], whole[:, "visible_000"].layers["high"])
    assert some.var["background"].item() == pytest.approx(whole.var.loc["visible_000", "background"])


def test_cells_get_what_follows_them_and_no_more():
    obs, cells, _ = planted_section(0.8)
    support = Support.of(cells, obs.inside, 20.0)
    shares = np.asarray(support.shares(cells, 0.8).sum(0)).reshape(obs.inside.shape)
    expected = 0.8 * support.density / support.unit / support.factor(0.8)
    np.testing.assert_allclose(shares, expected * obs.inside, rtol=1e-5, atol=1e-7)
    assert shares.max() <= 1


def test_the_map_follows_the_cells_where_expression_does():
    obs, cells, rate = planted_section(0.8)
    pcc = [
        hd.metrics.pearson(hd.tl.predict(obs, model=None, align=False, cells=one).mean, rate, obs.inside).mean()
        for one in (None, cells)
    ]
    assert pcc[1] > pcc[0] + 0.4


def test_any_other_cells_share_bins_by_area(copied):
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, **QUIET)
    cells, regions = hd.tl.to_cells(copied, "nuclei"), hd.tl.regions(copied, "nuclei")
    _, found = _read(copied, "nuclei")
    alone = found.overlap @ (found.density <= 1) == found.overlap.sum(1)  # not in a bin that is more than full
    np.testing.assert_allclose(cells.X[alone], regions.X[alone], rtol=1e-5, atol=1e-9)


def test_points_need_a_result_that_knows_them(copied):
    element = copied["nuclei"]
    xy = np.c_[element.geometry.x, element.geometry.y]
    copied["points"] = PointsModel.parse(xy, transformations=get_transformation(element, get_all=True))
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, **QUIET)
    with pytest.raises(ValueError, match="points have no area") as error:
        hd.tl.to_cells(copied, "points")
    remedy = re.search(r"`(hadmst_sc\.tl\.superresolve\(.*\))`", str(error.value))
    assert remedy and "cells_key='points'" in remedy[1] and "bin_um=20.0" in remedy[1]
    exec(remedy[1], {"hadmst_sc": hd, "sdata": copied})
    assert hd.tl.to_cells(copied, "points").n_obs == len(xy)


def test_all_genes_of_a_bin_follow_the_same_cells_with_the_network(copied):
    obs, cells = _read(copied, "nuclei")
    with_cells = hd.tl.predict(obs, cells=cells)
    assert np.isfinite(with_cells.mean).all() and (with_cells.mean >= 0).all()
    assert isinstance(with_cells.provenance["gate"], dict)


def test_samples_follow_the_cells_too(copied):
    obs, cells = _read(copied, "nuclei")
    relative = Support.of(cells, obs.inside, 20.0).relative[obs.inside]
    drawn = [
        hd.tl.predict(obs, cells=one, n_samples=2, gate=False, align=False).draws.mean((0, 1))[obs.inside]
        for one in (None, cells)
    ]
    assert np.corrcoef(drawn[1], relative)[0, 1] > np.corrcoef(drawn[0], relative)[0, 1] + 0.05


@pytest.mark.parametrize(
    ("change", "message", "kind"),
    [
        (lambda sdata: "none", r"`cells_key='none'` is not in `sdata\.shapes", MissingKeyError),
        (lambda sdata: _elsewhere(sdata), "shares no coordinate system", ContractError),
        (lambda sdata: _off_the_image(sdata), "none of its 2 cells lies on", ContractError),
        (lambda sdata: 3, "`cells_key` needs a name", ValueError),
    ],
)
def test_wrong_cells_are_named_before_anything_is_computed(copied, change, message, kind):
    key = change(copied)
    before = set(copied.images)
    with pytest.raises(kind, match=message):
        hd.tl.superresolve(copied, IMAGE, bin_um=20.0, cells_key=key, **QUIET)
    assert set(copied.images) == before


def _elsewhere(sdata):
    sdata["elsewhere"] = ShapesModel.parse(np.ones((2, 2)), geometry=0, radius=1.0, transformations={"far": Identity()})
    return "elsewhere"


def _off_the_image(sdata):
    transformations = get_transformation(sdata[IMAGE], get_all=True)
    sdata["off"] = ShapesModel.parse(-np.full((2, 2), 99.0), geometry=0, radius=1.0, transformations=transformations)
    return "off"


def test_the_remedy_for_cells_in_another_system(copied):
    key = _elsewhere(copied)
    set_transformation(copied[key], Scale([50.0, 50.0], axes=("x", "y")), to_coordinate_system="phantom")
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, cells_key=key, **QUIET)


def test_cells_of_another_grid_are_refused(section):
    obs, _ = _read(section, "nuclei")
    _, cells = _read(section, "nuclei", bin_um=25.0)
    with pytest.raises(ValueError, match="needs the 1,600 bins of `obs`, but has 1,024"):
        hd.tl.predict(obs, model=None, cells=cells)


def test_a_lazy_points_element_is_read(copied):
    frame = dd.from_pandas(pd.DataFrame({"x": [10.0, 20.0], "y": [10.0, 20.0]}), npartitions=2)
    copied["lazy"] = PointsModel.parse(frame, transformations=get_transformation(copied[IMAGE], get_all=True))
    assert _read(copied, "lazy")[1].density.sum() == 2


def test_to_cells_names_what_is_missing(copied):
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, **QUIET)
    with pytest.raises(KeyError, match=r"is not in `sdata\.shapes, sdata\.labels or sdata\.points`"):
        hd.tl.to_cells(copied, "none")
    with pytest.raises(KeyError, match="is not in"):
        hd.tl.to_cells(copied, ["nuclei"])
    with pytest.raises(ContractError, match="shares no coordinate system"):
        hd.tl.to_cells(copied, _elsewhere(copied))
    with pytest.raises(ContractError, match="none of its 2 cells lies on"):
        hd.tl.to_cells(copied, _off_the_image(copied))
    with pytest.raises(KeyError, match=r"`genes` needs genes of tables/superres_table, but \['no'\] are not"):
        hd.tl.to_cells(copied, "nuclei", genes=["no"])


def test_a_speck_alone_gets_what_its_area_gets(copied):
    rng = np.random.default_rng(0)
    xy = np.r_[rng.uniform([0, 0], [160, 320], (800, 2)), [[244.0, 164.0]]]
    radius = np.r_[np.full(800, 1.6), 0.8]
    transformations = get_transformation(copied[IMAGE], get_all=True)
    copied["specks"] = ShapesModel.parse(xy, geometry=0, radius=radius, transformations=transformations)
    obs, cells = _read(copied, "specks")
    factor = Support.of(cells, obs.inside, 20.0).factor(0.5)
    alone = np.ravel_multi_index((20, 30), obs.grid.shape)
    assert cells.overlap[[800]].indices.tolist() == [alone]
    assert factor.ravel()[alone] < 2


def test_cells_that_differ_in_one_corner_or_pixel_are_other_cells(copied):
    """Bounds of shapes, and every so many rows of labels, were compared."""
    square, notched = shapely.box(40, 40, 60, 60), shapely.box(40, 40, 60, 60) - shapely.box(40, 50, 50, 55)
    where = get_transformation(copied["nuclei"], get_all=True)
    labels = np.zeros((200, 200), int)
    labels[40:60, 40:60] = 1
    other = labels.copy()
    other[41, 41] = 0
    kinds = [
        (lambda one: ShapesModel.parse(gpd.GeoDataFrame(geometry=[one]), transformations=where), square, notched),
        (lambda one: Labels2DModel.parse(one, dims=("y", "x"), transformations=where), labels, other),
    ]
    for kind, (make, first, second) in enumerate(kinds):
        digests = []
        for number, one in enumerate((first, second, first)):
            copied[f"cells_{kind}_{number}"] = make(one)
            digests.append(_read(copied, f"cells_{kind}_{number}")[1].digest)
        assert digests[0] == digests[2] != digests[1]


def test_renamed_cells_are_recognised_and_changed_ones_are_told(copied, caplog):
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, cells_key="nuclei", **QUIET)
    copied.tables["superres_table"].uns["hadmst_sc"]["strength_of_cells"]["used"] = 0.5
    first = hd.tl.to_cells(copied, "nuclei")
    copied["renamed"] = copied["nuclei"]
    np.testing.assert_array_equal(hd.tl.to_cells(copied, "renamed").X, first.X)
    assert "differs from what it was" not in caplog.text
    changed = copied["nuclei"].copy()
    changed["radius"] = changed["radius"] * 1.5
    copied["nuclei"] = changed
    hd.tl.to_cells(copied, "nuclei")
    assert "'nuclei' differs from what it was when 'superres' was made" in caplog.text


def test_pixels_of_labels_may_be_as_large_as_bins(copied):
    labels = np.ones((100, 100), np.int32)
    copied["coarse"] = Labels2DModel.parse(
        labels, dims=("y", "x"), transformations={"phantom": Scale([3.2, 3.2], axes=("x", "y"))}
    )
    obs, found = _read(copied, "coarse", bin_um=10.0)
    whole = found.density.reshape(obs.grid.shape)[:, : obs.grid.shape[1]]
    assert np.abs(whole - 1).max() < 0.4 and abs(whole.mean() - 1) < 0.01


def test_the_table_is_ready_for_scanpy_and_squidpy(copied):
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, cells_key="nuclei", **QUIET)
    cells = hd.tl.to_cells(copied, "nuclei", genes=["visible_000"])
    assert cells.n_vars == 1 and cells.X.dtype == np.float32
    element = copied["nuclei"]
    to_system = get_transformation(element, to_coordinate_system="phantom").to_affine_matrix(("x", "y"), ("x", "y"))
    xy = np.c_[element.geometry.x, element.geometry.y] @ to_system[:2, :2].T + to_system[:2, 2]
    np.testing.assert_allclose(cells.obsm["spatial"], xy, atol=1e-6)
    copied.tables["cell_counts"] = cells
    known = cells[cells.obs["n_bins"] > 0].copy()  # as the page says
    assert np.isfinite(known.X).all() and len(known) > 0


def test_a_table_too_large_is_refused(copied, monkeypatch):
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, **QUIET)
    module = importlib.import_module("hadmst_sc.tl.to_cells")
    monkeypatch.setattr(module, "MAX_BYTES", 2 * 16 * len(copied["nuclei"]))
    with pytest.raises(ValueError, match="Pass `genes=` with 2 names or fewer"):
        hd.tl.to_cells(copied, "nuclei")
    assert hd.tl.to_cells(copied, "nuclei", genes=["visible_000"]).n_vars == 1  # the remedy


def _duplicated(sdata):
    element = sdata["nuclei"].copy()
    element.index = np.arange(len(element)) // 2
    sdata["twice"] = element
    return "twice"


def _unnamed(sdata):
    element = sdata["nuclei"].copy()
    element.index = np.arange(len(element)) + 0.5
    sdata["floats"] = element
    return "floats"


def _without_radius(sdata):
    element = sdata["nuclei"].copy()
    element.loc[element.index[3:9], "radius"] = np.nan
    sdata["lost"] = element
    return "lost"


def _mixed(sdata):
    shapes = [*sdata["nuclei"].geometry.buffer(1.6)[:5], shapely.Point(50, 50)]
    transformations = get_transformation(sdata[IMAGE], get_all=True)
    sdata["mixed"] = ShapesModel.parse(gpd.GeoDataFrame(geometry=shapes), transformations=transformations)
    return "mixed"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_duplicated, r"needs cells of different names, but has \[0, 1, 2, 3, 4\] more than once"),
        (_unnamed, "needs whole numbers or text as names of cells, but the index is of type float64"),
        (_without_radius, "needs circles with a positive radius, but that of 6 of"),
        (_mixed, "needs either points or areas, but 1 of its 6 shapes are points without a radius"),
    ],
)
def test_the_remedies_for_wrong_cells_work(copied, make, message):
    key = make(copied)
    with pytest.raises(ContractError, match=message) as error:
        hd.tl.superresolve(copied, IMAGE, bin_um=20.0, cells_key=key, **QUIET)
    (remedy,) = re.findall(r"Call `(.*)`", str(error.value))
    exec(remedy, {"sdata": copied})
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, cells_key=key, **QUIET)
    assert hd.tl.to_cells(copied, key).n_obs == len(copied[key])


def test_the_singular_and_the_empty_are_named(copied):
    shapes = gpd.GeoDataFrame(geometry=copied["nuclei"].geometry.buffer(2).values)
    copied["flat"] = ShapesModel.parse(shapes, transformations={"phantom": Scale([0.0, 1.0], axes=("x", "y"))})
    empty = np.zeros((10, 10), np.int32)
    copied["empty"] = Labels2DModel.parse(empty, dims=("y", "x"), transformations={"phantom": Identity()})
    for key, message in (("flat", "is not finite or singular"), ("empty", "it holds no cells")):
        with pytest.raises(ContractError, match=message):
            hd.tl.superresolve(copied, IMAGE, bin_um=20.0, cells_key=key, **QUIET)


def test_ids_above_the_exact_floats_stay_apart(copied):
    large = [2**53 + 1, 2**53 + 2]
    labels = np.zeros((320, 320), np.int64)
    labels[100:110, 100:110], labels[100:110, 110:120] = large
    where = get_transformation(copied[IMAGE], get_all=True)
    copied["large"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations=where)
    obs, found = _read(copied, "large")
    assert found.ids.tolist() == large
    areas = np.asarray(found.overlap.sum(1)).ravel() * obs.grid.bin_um**2
    np.testing.assert_allclose(areas, 100 * 2.5**2)


def test_only_ids_above_zero_are_cells(copied):
    labels = np.full((320, 320), -1, np.int64)
    labels[:100, :100] = 2**40
    copied["odd"] = Labels2DModel.parse(
        labels, dims=("y", "x"), transformations=get_transformation(copied[IMAGE], get_all=True)
    )
    assert _read(copied, "odd")[1].ids.tolist() == [2**40]


def test_the_call_that_makes_a_result_again_knows_its_cells(copied):
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, cells_key="nuclei", **QUIET)
    del copied.tables["superres_table"].var["dispersion"]
    with pytest.raises(KeyError, match="cells_key='nuclei'"):
        hd.tl.to_cells(copied, "nuclei")


def test_the_result_cannot_be_its_own_cells(copied):
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, **QUIET)
    with pytest.raises(ValueError, match="is a part of the result that `key_added='superres'` replaces"):
        hd.tl.superresolve(copied, IMAGE, bin_um=20.0, cells_key="superres_bins", overwrite=True, **QUIET)


def test_cells_that_were_moved_since_the_run_are_told(copied, caplog):
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, cells_key="nuclei", **QUIET)
    copied.tables["superres_table"].uns["hadmst_sc"]["strength_of_cells"]["used"] = 0.5
    hd.tl.to_cells(copied, "nuclei")
    assert "was moved" not in caplog.text
    moved = copied["nuclei"].copy()
    before = get_transformation(moved, get_all=True)
    shifted = {name: Sequence([Translation([4.0, 0.0], ("x", "y")), one]) for name, one in before.items()}
    set_transformation(moved, shifted, set_all=True)
    copied["nuclei"] = moved
    hd.tl.to_cells(copied, "nuclei")
    assert "'nuclei' was moved since 'superres' was made" in caplog.text
    assert "overwrite=True" in caplog.text
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, cells_key="nuclei", overwrite=True, **QUIET)  # the remedy
    caplog.clear()
    hd.tl.to_cells(copied, "nuclei")
    assert "was moved" not in caplog.text


def test_cells_of_labels_beside_the_section_have_a_row_like_those_of_shapes(copied):
    labels = np.zeros((400, 400), np.int32)  # the image has 320
    labels[100:104, 100:104], labels[350:354, 350:354] = 5, 9
    transformations = get_transformation(copied[IMAGE], get_all=True)
    copied["some"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations=transformations)
    hd.tl.superresolve(copied, IMAGE, bin_um=20.0, **QUIET)
    found = hd.tl.to_cells(copied, "some")
    assert found.obs["instance_id"].tolist() == [5, 9]
    assert np.isfinite(found.X[0]).all() and np.isnan(found.X[1]).all()


def test_large_outlines_have_the_area_that_intersections_give():
    edge = np.linspace(0, 2 * np.pi, 300, endpoint=False)
    radius = 9 + np.sin(7 * edge)
    lake = shapely.Polygon(np.c_[12 + 4 * np.cos(edge), 12 + 4 * np.sin(edge)])
    shape = shapely.Polygon(np.c_[12 + radius * np.cos(edge), 12 + radius * np.sin(edge)]).difference(lake)
    y, x = np.divmod(np.arange(24 * 24), 24)
    expected = shapely.area(shapely.intersection(shape, shapely.box(x, y, x + 1, y + 1)))
    found = overlap(gpd.GeoSeries([shape]), (24, 24)).toarray()[0]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert 0 < (expected == 1).sum() < np.count_nonzero(expected)
