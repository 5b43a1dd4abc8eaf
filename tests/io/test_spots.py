"""Spots in every form that platforms and readers give them lie where they lie and cover what they cover."""

from __future__ import annotations

import logging
import runpy
from pathlib import Path

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from scipy import sparse
from shapely import Point, affinity
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

from hadmst_sc.io import read_observation
from hadmst_sc.io.match import positions
from hadmst_sc.section.measurement import squares

HELPERS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
visium_section = HELPERS["visium_section"]
IMAGE = "S1_full_image"


def read(sdata, **arguments):
    return read_observation(sdata, **({"image_key": IMAGE, "bin_um": 20.0} | arguments))


def change_table(sdata, change):
    table = sdata["table"].copy()
    change(table)
    del sdata.tables["table"]
    sdata["table"] = table
    return sdata


# --- ids ---


@pytest.mark.parametrize(
    "form", [str, float, np.int32, lambda x: x.astype(str).astype("category"), lambda x: x.astype(float).astype(str)]
)
@pytest.mark.parametrize("side", ["table", "shapes"])
def test_ids_of_another_type_are_the_same_ids(form, side):
    sdata = visium_section()
    expected = read(sdata)
    convert = form if not isinstance(form, type) else lambda values: values.astype(form)
    order = np.random.default_rng(0).permutation(225)
    if side == "shapes":
        sdata["S1"].index = convert(pd.Series(sdata["S1"].index)).to_numpy()
    sdata.tables["table"] = sdata["table"][order].copy()
    if side == "table":  # in place, as spatialdata checks what is assigned to it
        sdata["table"].obs["spot_id"] = convert(sdata["table"].obs["spot_id"])
    obs = read(sdata)
    assert obs.spots == expected.spots
    np.testing.assert_array_equal(obs.counts, expected.counts)


def test_ids_that_are_equal_only_as_text_are_not_mixed_up():
    ids = np.array(["5", "7"], object)
    np.testing.assert_array_equal(positions(ids, pd.Index([7, 5, 9])), [1, 0])
    np.testing.assert_array_equal(positions(ids, pd.Index(["005", "007"])), [-1, -1])
    np.testing.assert_array_equal(positions(np.array([5.0, np.nan]), pd.Index(["5", "nan"])), [0, -1])
    both = pd.Index(np.array([5, "5", 7], object))
    np.testing.assert_array_equal(positions(ids, both), [1, -1])  # 5 and "5" are two spots there


def test_the_same_barcodes_in_two_sections_stay_apart():
    a, b = visium_section(seed=1), visium_section(seed=2)
    parts = []
    for name, one in (("A", a), ("B", b)):
        part = one["table"].copy()
        part.obs["region"], part.uns = name, {}
        part.X = part.X * (1 if name == "A" else 10)
        parts.append(part)
    both = ad.concat(parts)
    both.obs["region"] = both.obs["region"].astype("category")
    sdata = SpatialData(
        images={"A_image": a[IMAGE], "B_image": b[IMAGE]},
        shapes={"A": a["S1"], "B": b["S1"]},
        tables={"table": TableModel.parse(both, region=["A", "B"], region_key="region", instance_key="spot_id")},
    )
    from hadmst_sc.pp import validate

    for name, part in zip("AB", parts, strict=True):
        totals = np.asarray(part.X.sum(1)).ravel()
        obs = read(sdata, image_key=f"{name}_image", shapes_key=name, genes=8)
        np.testing.assert_array_equal(obs.counts.sum(1), totals)
        np.testing.assert_array_equal(both.obs["region"].to_numpy()[obs.rows], name)
        report = validate(sdata, f"{name}_image", shapes_key=name, bin_um=20.0, align=False)
        assert report.facts["median_counts_per_spot"] == np.median(totals)


def test_rows_follow_every_selection_of_spots():
    obs = read(change_table(visium_section(), lambda table: None))
    table = visium_section()["table"]
    kept = obs.subset_spots(np.arange(0, 225, 7)).cropped((slice(10, 60), slice(5, 50)))
    assert tuple(table.obs_names[kept.rows]) == kept.spots and 0 < len(kept.spots) < 33


# --- off the tissue, off the image ---

OFF = {
    "integers": lambda off: np.where(off, 0, 1),
    "booleans": lambda off: ~off,
    "text": lambda off: np.where(off, "0", "1"),
    "words": lambda off: np.where(off, "False", "True"),
    "letters": lambda off: np.where(off, "F", "T"),
    "bytes": lambda off: np.where(off, b"n", b"y").astype(object),
    "categories": lambda off: pd.Categorical(np.where(off, 0, 1)),
    "floats and missing": lambda off: np.where(off, 0.0, np.where(np.arange(225) % 2, 1.0, np.nan)),
}


@pytest.mark.parametrize("form", OFF)
def test_spots_off_the_tissue_are_left_out_and_counted(form, caplog):
    off = np.arange(225) % 4 == 0
    sdata = change_table(visium_section(), lambda table: table.obs.__setitem__("in_tissue", OFF[form](off)))
    with caplog.at_level(logging.WARNING, logger="hadmst_sc"):
        obs = read(sdata)
    assert obs.spots == tuple(f"spot-{i}" for i in np.flatnonzero(~off))
    assert "57 of 225 spots have obs['in_tissue'] = 0 and are left out" in caplog.text
    assert obs.source.pitch_um == 100.0


def test_a_word_that_says_neither_on_nor_off_the_tissue_is_reported(caplog):
    values = np.where(np.arange(225) % 4 == 0, "background", "1")
    sdata = change_table(visium_section(), lambda table: table.obs.__setitem__("in_tissue", values))
    with caplog.at_level(logging.WARNING, logger="hadmst_sc"):
        assert len(read(sdata).spots) == 225
    assert "obs['in_tissue'] has the values ['background'], which are neither 0 nor 1" in caplog.text


def test_a_lattice_is_recognised_by_the_spots_off_the_tissue_too():
    rows = [0, 17, 101]
    off = ~np.isin(np.arange(225), rows)
    obs = read(change_table(visium_section(), lambda table: table.obs.__setitem__("in_tissue", (~off).astype(int))))
    assert len(obs.spots) == 3 and obs.grid.um_per_px == pytest.approx(4.0)


@pytest.mark.parametrize(("n", "warned"), [(39, True), (40, False)])
def test_few_spots_are_a_warning(n, warned, caplog):
    sdata = visium_section()
    sdata.tables["table"] = sdata["table"][:n].copy()
    read(sdata)
    assert (f"has {n} spots: with fewer than 40" in caplog.text) == warned


@pytest.mark.parametrize("place", [(-2.0, 50.0), (100.0, 401.0), (330.0, -7.0)])
def test_a_few_spots_off_the_image_are_left_out_and_counted(place, caplog):
    sdata, genes = visium_section(), ["gene-1", "gene-4"]
    expected = read(sdata, genes=genes)
    sdata["S1"].loc[[5, 9], "geometry"] = [Point(place), Point(place[0] - 1, place[1] + 1)]
    with caplog.at_level(logging.WARNING, logger="hadmst_sc"):
        obs = read(sdata, genes=genes)
    kept = [i for i in range(225) if i not in (5, 9)]
    assert obs.spots == tuple(f"spot-{i}" for i in kept)
    np.testing.assert_array_equal(obs.counts, expected.counts[kept])
    assert "2 of 225 spots are outside the image of 320 x 400 pixels and are left out" in caplog.text


def test_a_spot_at_the_border_has_the_rate_of_its_visible_part():
    sdata = visium_section()
    table = sdata["table"].copy()
    table.X = sparse.csr_matrix(np.full(table.shape, 12.0, np.float32))
    del sdata.tables["table"]
    sdata["table"] = table
    sdata["S1"].loc[[0, 1], "geometry"] = [Point(0.0, 200.0), Point(0.0, 0.0)]
    obs = read(sdata)
    rates = obs.counts / obs.measurement.area[:, None]
    np.testing.assert_allclose(rates, rates[5, 0], rtol=1e-5)  # as everywhere, not twice or four times
    np.testing.assert_allclose(obs.counts[:2, 0], [6, 3], rtol=1e-5)


# --- forms ---


def with_shapes(geometry, key="S1", **columns) -> SpatialData:
    """A section whose spots are drawn otherwise; ids as before."""
    sdata = visium_section()
    frame = gpd.GeoDataFrame(columns, geometry=list(geometry), index=range(len(geometry)))
    shapes = ShapesModel.parse(frame, transformations={"S1": Identity()})
    n = len(frame)
    table = ad.AnnData(
        np.random.default_rng(0).poisson(4, (n, 3)).astype(np.float32),
        obs=pd.DataFrame(
            {"region": pd.Categorical([key] * n), "spot_id": np.arange(n)}, index=[f"b{i}" for i in range(n)]
        ),
    )
    table = TableModel.parse(table, region=key, region_key="region", instance_key="spot_id")
    return SpatialData(images={IMAGE: sdata[IMAGE]}, shapes={key: shapes}, tables={"table": table})


@pytest.mark.parametrize("kind", ["polygons", "collections of one", "octagons"])
def test_circles_drawn_as_polygons_are_circles(kind):
    expected = read(visium_section())
    centres = visium_section()["S1"].geometry
    circles = gpd.GeoSeries(shapely.buffer(np.asarray(centres), 6.875, quad_segs=2 if kind == "octagons" else 16))
    if kind == "octagons":  # of the same area
        circles = circles.scale(*[np.sqrt(np.pi * 6.875**2 / circles.area.iloc[0])] * 2)
    sdata = with_shapes([shapely.MultiPolygon([one]) for one in circles] if "one" in kind else circles)
    obs = read(sdata)
    np.testing.assert_allclose(obs.measurement.centres, expected.measurement.centres, atol=1e-6)
    assert abs(obs.measurement.matrix - expected.measurement.matrix).max() < 0.01
    assert obs.source.spot_um == 55.0


def bins(degrees: float, edge: float = 5.0, n: int = 20) -> tuple[np.ndarray, list]:
    """Squares side by side, turned about the middle of the image: centres (x, y) and outlines."""
    column, row = (axis.ravel() - (n - 1) / 2 for axis in np.meshgrid(np.arange(n), np.arange(n)))
    flat = [shapely.box(x - edge / 2, y - edge / 2, x + edge / 2, y + edge / 2) for x, y in np.c_[column, row] * edge]
    turned = [affinity.translate(affinity.rotate(one, degrees, origin=(0, 0)), 160, 200) for one in flat]
    return np.array([one.centroid.coords[0] for one in turned]), turned


@pytest.mark.parametrize("degrees", [0, 3, -3, 20, 45, 88])
@pytest.mark.parametrize("form", ["squares", "squares along the axes", "circles", "points"])
def test_turned_bins_cover_exactly_what_they_cover(degrees, form):
    """However a reader draws them: `spatialdata_io.visium_hd` keeps its squares and circles along the axes."""
    xy, outlines = bins(degrees)
    key = "S1_square_020um"
    if form == "points":
        sdata = with_shapes([Point(p) for p in xy], radius=1.0)
        sdata["points"] = PointsModel.parse(pd.DataFrame(xy, columns=["x", "y"]), transformations={"S1": Identity()})
        table = sdata["table"].copy()
        table.obs["region"] = pd.Categorical(["points"] * len(xy))
        table.uns["spatialdata_attrs"]["region"] = "points"
        del sdata.tables["table"]
        sdata["table"] = table
        obs = read(sdata, bin_um=10.0, spot_um=20.0)
    elif form == "circles":
        obs = read(with_shapes([Point(p) for p in xy], key=key, radius=2.5), bin_um=10.0)
    else:
        drawn = [shapely.box(*(p - 2.5), *(p + 2.5)) for p in xy] if "axes" in form else outlines
        obs = read(with_shapes(drawn, key=key), bin_um=10.0)
    assert obs.source.spot_um == 20.0 and obs.grid.px_per_bin == pytest.approx(2.5)
    np.testing.assert_allclose(obs.measurement.area, 4.0, rtol=1e-9)
    assert obs.measurement.coverage.max() <= 1 + 1e-6  # side by side, no overlap
    some = 137
    row, column = np.nonzero(obs.measurement.matrix[some].toarray().reshape(obs.grid.shape))
    for y, x in zip(row, column, strict=True):
        exact = outlines[some].intersection(shapely.box(x * 2.5, y * 2.5, x * 2.5 + 2.5, y * 2.5 + 2.5)).area / 2.5**2
        assert obs.measurement.matrix[some, y * obs.grid.shape[1] + x] == pytest.approx(exact, abs=1e-9)


@pytest.mark.parametrize("degrees", [0.5, 10.0, 45.0, 80.0, 130.0])
def test_area_of_turned_squares_is_that_of_polygons(degrees):
    centres = np.random.default_rng(1).uniform(-1, 11, (5, 2))
    areas = squares(centres, 2.3, (10, 12), np.radians(degrees)).matrix.toarray().reshape(-1, 10, 12)
    for (y, x), found in zip(centres, areas, strict=True):
        outline = affinity.rotate(shapely.box(x - 1.15, y - 1.15, x + 1.15, y + 1.15), degrees)
        exact = [[outline.intersection(shapely.box(j, i, j + 1, i + 1)).area for j in range(12)] for i in range(10)]
        np.testing.assert_allclose(found, exact, atol=1e-10)


def labelled(values: np.ndarray, to_px: np.ndarray, key: str, seed: int = 0) -> SpatialData:
    ids = np.unique(values[values > 0]).astype(int)
    obs = pd.DataFrame({"region": pd.Categorical([key] * len(ids)), "id": ids}, index=[f"b{i}" for i in ids])
    table = ad.AnnData(np.random.default_rng(seed).poisson(3, (len(ids), 4)).astype(np.float32), obs=obs)
    table = table[np.random.default_rng(1).permutation(len(ids))].copy()
    place = Affine(to_px, input_axes=("x", "y"), output_axes=("x", "y"))
    return SpatialData(
        images={IMAGE: visium_section()[IMAGE]},
        labels={key: Labels2DModel.parse(values.astype(np.uint32), dims=("y", "x"), transformations={"S1": place})},
        tables={"table": TableModel.parse(table, region=key, region_key="region", instance_key="id")},
    )


@pytest.mark.parametrize("degrees", [0.0, 4.0])
@pytest.mark.parametrize("pixels", [1, 3])
def test_labels_of_square_bins_are_read_as_squares(degrees, pixels):
    """As `visium_hd(annotate_table_by_labels=True)` leaves them: a pixel per bin, and an affine to the image."""
    n, (sin, cos) = 24, (np.sin(np.radians(degrees)), np.cos(np.radians(degrees)))
    values = np.arange(n * n).reshape(n, n)
    values[:2] = 0  # without counts
    edge = 5.0  # pixels of the image
    turn = np.array([[cos, -sin, 100], [sin, cos, 120], [0, 0, 1]]) @ np.diag([edge / pixels, edge / pixels, 1])
    sdata = labelled(values.repeat(pixels, 0).repeat(pixels, 1), turn, "S1_square_020um_labels")
    obs = read(sdata, bin_um=10.0)
    assert obs.source.spot_um == 20.0
    np.testing.assert_allclose(obs.measurement.area, 4.0, rtol=1e-6)
    table = sdata["table"]
    np.testing.assert_array_equal(obs.counts, table[list(obs.spots), list(obs.genes)].X)
    ids = table.obs.loc[list(obs.spots), "id"].to_numpy()
    own = np.c_[ids % n + 0.5, ids // n + 0.5, np.full(len(ids), 1 / pixels)] * pixels
    np.testing.assert_allclose(obs.measurement.centres[:, ::-1] * 2.5, (own @ turn.T)[:, :2], atol=1e-6)


def test_labels_of_round_spots_are_read_as_discs():
    expected = read(visium_section())
    values = np.zeros((800, 640), np.uint32)
    y, x = np.mgrid[:800, :640] + 0.5
    for i, point in enumerate(visium_section()["S1"].geometry):
        values[np.hypot(y - 2 * point.y, x - 2 * point.x) < 2 * 6.875] = i + 1
    obs = read(labelled(values, np.diag([0.5, 0.5, 1]), "spots"))
    assert obs.source.spot_um == 55.0
    np.testing.assert_allclose(obs.measurement.centres, expected.measurement.centres, atol=0.06)


# --- units ---


@pytest.mark.parametrize("unit", [1e-6, 1e-9, 1e6])
def test_the_unit_of_a_coordinate_system_does_not_matter(unit):
    expected, sdata = read(visium_section()), visium_section()
    for name in ("S1", IMAGE):
        set_transformation(sdata[name], {"metres": Scale([4 * unit, 4 * unit], axes=("x", "y"))}, set_all=True)
    obs = read(sdata)
    assert obs.spots == expected.spots and obs.source.coordinate_system == "metres"
    np.testing.assert_allclose(obs.measurement.centres, expected.measurement.centres, atol=1e-6)


def test_bins_larger_than_spots_are_a_warning_and_than_two_pitches_an_error(caplog):
    read(visium_section(), bin_um=60.0)
    assert "larger than the spots of 55 µm" in caplog.text
    with pytest.raises(ValueError, match=r"`bin_um` needs bins no larger than 2 times the pitch.*Pass `bin_um=27.5`"):
        read(visium_section(), bin_um=201.0)


def test_a_section_without_positions_is_named():
    sdata = visium_section()
    sdata["S1"].geometry = [Point(100, 100)] * 225
    with pytest.raises(ValueError, match="all 225 spots are at one position"):
        read(sdata)
