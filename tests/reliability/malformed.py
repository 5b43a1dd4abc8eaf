"""Malformed inputs by kind: arguments, tables, spots, images, masks. Each is refused by name, or gives a finite result.

``refused`` names what the message must name; ``fine`` are odd inputs that a run has to take.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import xarray as xr
from geopandas import GeoDataFrame, GeoSeries
from shapely import LineString, MultiPolygon, Point, Polygon, box
from spatialdata.models import Labels2DModel, PointsModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

FOLDER = Path(__file__).parents[1] / "io"
HELPERS = runpy.run_path(str(FOLDER / "conftest.py"))
ERRORS = runpy.run_path(str(FOLDER / "test_read_errors.py"))
visium_section, fingerprint = HELPERS["visium_section"], HELPERS["fingerprint"]
edit, edit_x, image = (ERRORS[name] for name in ("edit", "edit_x", "image"))
NAN, INF, SIZE = float("nan"), float("inf"), (400, 320)
RGB = np.random.default_rng(0).integers(100, 220, (3, *SIZE))


class Case(NamedTuple):
    """A change of a fresh section, arguments, and what the message names (``None``: a result)."""

    change: Callable[[Any], Any] | None
    arguments: dict[str, Any]
    names: str | None


ARGUMENTS: dict[str, list[Any]] = {
    "bin_um": ["10", None, [10], 1j, NAN, INF, -1, 0, True, 1e6, 1e4, 1e-3, 1e-300, np.array([10.0]), {}, 10**400],
    "spot_um": ["55", [55], 1j, NAN, INF, 0, -55, True, 1e9, 5.5e-5, np.array([55.0])],
    "pitch_um": ["100", (100,), 1j, NAN, INF, 0, True, False, 1e9, 1e-4],
    "with_std": [1, None, "yes", [True], NAN],
    "n_metagenes": [1, "8", 8.0, 0, True, 10**6, [8], 500],
    "consistency": ["strict", None, 3, ["soft"], "", True, "SOFT"],
    "align": ["Spots", "yes", 1, 0, None, np.array([1, 2]), [True], 1.0],
    "gate": [1, "no", None, np.array([True, False]), []],
    "features": [
        np.zeros(3),
        np.zeros((8, 8)),
        np.full((1, 8, 8), NAN),
        np.full((1, 8, 8), INF),
        np.full((1, 8, 8), 1e300),
        np.zeros((0, 8, 8)),
        np.zeros((1, 8, 8), complex),
        np.full((1, 8, 8), "x"),
        [[1, 2], [3]],
        "uni",
        3,
        {"a": 1},
    ],
    "device": [3, "abacus", None, "cuda:99", [], ""],
    "batch_size": [0, -1, 2.0, "4", NAN, True],
    "n_jobs": [NAN, 0, True, -1, 2.5, "2", 10**9],
    "client": ["tcp://127.0.0.1:8786", 3, object()],
    "key_added": [3, None, "", "a/b", "../x", ".x", "__x", "x" * 300, ["a"], "S1_full_image", "a\0b", "a\nb"],
    "overwrite": ["yes", 1, None],
    "copy": [1, "no", None],
    "show_progress_bar": [1, "yes", None],
    "model": [3, "", "nonesuch", Path("/none"), Path("/"), ["default"], True, b"default", object(), "\0", "x" * 5000],
    "image_key": [3, None, "", ["S1_full_image"] * 2, "he", {}, b"S1_full_image", "S1"],
    "table_key": [3, None, "", ["table"], "counts", b"table"],
    "shapes_key": [3, "", ["S1"], "S9", b"S1", "S1_full_image"],
    "coordinate_system": [3, "", ["S1"], "global", NAN],
    "layer": [3, "", ["X"], "counts", NAN],
    "tissue_key": [3, "", ["S1"], "mask", "S1_full_image"],
    "genes": [
        "gene-1",
        2.5,
        [],
        ["gene-1"] * 2,
        9,
        0,
        -1,
        True,
        NAN,
        [None],
        [["gene-1"]],
        [3],
        b"gene-1",
        np.array([["gene-1"]]),
        {"gene-1": 1, "gene-x": 2},
    ],
}
SDATA = {
    "None": None,
    "an AnnData": ad.AnnData(np.ones((3, 2), np.float32)),
    "a path": "section.zarr",
    "a Path": Path("section.zarr"),
    "a dictionary": {"images": {}},
    "a list": [],
    "a number": 3,
    "an array": np.zeros(3),
}


def x(change):
    """A change of the dense counts."""
    return edit(lambda table: setattr(table, "X", change(table.X.toarray())))


def put(value):
    """The counts with one value."""

    def change(counts):
        counts[5, 3] = value
        return counts

    return x(change)


def uns(value):
    """Metadata of the spots."""
    return edit(lambda table: table.uns.__setitem__("spatial", {"S1": {"metadata": value}}))


def attrs(value):
    def apply(sdata):
        sdata["table"].uns["spatialdata_attrs"] = value

    return apply


def obs(column, value):
    def apply(sdata):
        sdata["table"].obs[column] = value(sdata["table"].obs)

    return apply


def names(*first):
    return edit(lambda table: setattr(table, "var_names", [*first, *table.var_names[len(first) :]]))


def part(*index):
    def apply(sdata):
        sdata.tables.data["table"] = sdata["table"][index].copy()

    return apply


TABLES = {
    "NaN": Case(put(NAN), {}, "tables/table"),
    "infinite": Case(put(INF), {}, "tables/table"),
    "negative": Case(put(-1), {}, "tables/table"),
    "1e18": Case(put(1e18), {}, "tables/table"),
    "1e30": Case(put(1e30), {}, "tables/table"),
    "1e300": Case(x(lambda counts: counts.astype(float) * 1e300), {}, "tables/table"),
    "logarithms": Case(x(np.log1p), {}, "tables/table"),
    "z-scores": Case(x(lambda counts: (counts - counts.mean(0)) / counts.std(0)), {}, "tables/table"),
    "complex": Case(x(lambda counts: counts.astype(complex)), {}, "tables/table"),
    "text": Case(x(lambda counts: counts.astype(str)), {}, "tables/table"),
    "no X": Case(edit(lambda table: setattr(table, "X", None)), {}, "tables/table"),
    "no genes": Case(part(slice(None), []), {}, "tables/table"),
    "no rows": Case(part([], slice(None)), {}, "tables/table"),
    "a gene of NaN in a layer": Case(
        edit(lambda table: table.layers.__setitem__("c", table.X.toarray() * NAN)), {"layer": "c"}, "tables/table"
    ),
    "genes of one name": Case(names("twice", "twice"), {}, "tables/table"),
    "metadata that are text": Case(attrs("S1"), {}, "tables/table"),
    "metadata that are None": Case(attrs(None), {}, "tables/table"),
    "metadata that are a list": Case(attrs(["S1", "region", "spot_id"]), {}, "tables/table"),
    "metadata without an instance": Case(attrs({"region": "S1", "region_key": "region"}), {}, "tables/table"),
    "metadata of numbers": Case(attrs({"region": 3, "region_key": 4, "instance_key": 5}), {}, "tables/table"),
    "metadata of a column that is not there": Case(
        attrs({"region": "S1", "region_key": "where", "instance_key": "spot_id"}), {}, "tables/table"
    ),
    "another region": Case(obs("region", lambda frame: pd.Categorical(["S9"] * len(frame))), {}, "tables/table"),
    "regions that are NaN": Case(obs("region", lambda frame: NAN), {}, "tables/table"),
    "ids that are NaN": Case(obs("spot_id", lambda frame: NAN), {}, "tables/table"),
    "ids of one spot": Case(obs("spot_id", lambda frame: 0), {}, "tables/table"),
    "ids that no spot has": Case(obs("spot_id", lambda frame: np.arange(len(frame)) + 10_000), {}, "tables/table"),
    "ids that are lists": Case(obs("spot_id", lambda frame: [[i] for i in range(len(frame))]), {}, "tables/table"),
    "spot_um=1e9 in uns": Case(uns({"spot_um": 1e9, "pitch_um": 2e9}), {}, "tables/table"),
    "spot_um in metres in uns": Case(uns({"spot_um": 5.5e-5, "pitch_um": 1e-4}), {}, "tables/table"),
}
FINE_TABLES = {
    "objects": x(lambda counts: counts.astype(object)),
    "half precision": x(lambda counts: counts.astype(np.float16)),
    "big-endian": x(lambda counts: counts.astype(">f4")),
    "big-endian integers": x(lambda counts: counts.astype(">i8")),
    "8 bit": x(lambda counts: counts.astype(np.uint8)),
    "booleans": x(lambda counts: counts > 2),
    "unsigned 64 bit": x(lambda counts: counts.astype(np.uint64)),
    "sparse by columns": edit(lambda table: setattr(table, "X", table.X.tocsc())),
    "lazy": edit(lambda table: setattr(table, "X", da.from_array(table.X.toarray(), chunks=(100, 3)))),
    "a gene called None": names("None"),
    "a gene called nan": names("nan"),
    "an empty name": names(""),
    "a name with line breaks": names("a\nb\x1b[31m"),
    "sizes in uns that are text": uns({"spot_um": "55", "pitch_um": "100"}),
    "sizes in uns that are NaN": uns({"spot_um": NAN, "pitch_um": NAN}),
    "sizes in uns that are true": uns({"spot_um": True, "pitch_um": True}),
    "sizes in uns that are lists": uns({"spot_um": [55], "pitch_um": [100]}),
    "metadata of uns that are text": uns("Visium"),
}


def geometry(change):
    """A change of the spots' geometries, by their coordinates ``(n, 2)``."""

    def apply(sdata):
        spots = sdata["S1"]
        xy = np.c_[spots.geometry.x, spots.geometry.y]
        spots["geometry"] = GeoSeries(change(xy), index=spots.index)

    return apply


def points(xy):
    return [Point(*one) for one in xy]


def radius(value):
    return lambda sdata: sdata["S1"].__setitem__("radius", value)


def moved(matrix, element="S1"):
    def apply(sdata):
        transformation = Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))
        set_transformation(sdata[element], {"S1": transformation}, set_all=True)

    return apply


def in_metres(sdata):
    """Both elements in a system whose unit is the metre."""
    for name in ("S1", "S1_full_image"):
        set_transformation(sdata[name], {"S1": Scale([4e-6, 4e-6], axes=("x", "y"))}, set_all=True)


def no_spots(sdata):
    sdata.shapes.data["S1"] = sdata["S1"].iloc[:0]


SPOTS = {
    "none": Case(no_spots, {}, "tables/table"),
    "all in one place": Case(geometry(lambda xy: points(np.full_like(xy, 100.0))), {}, "shapes/S1"),
    "every spot twice": Case(geometry(lambda xy: points(np.repeat(xy[::2], 2, 0)[: len(xy)])), {}, "shapes/S1"),
    "a geometry that is None": Case(geometry(lambda xy: [None, *points(xy[1:])]), {}, "shapes/S1"),
    "all geometries None": Case(geometry(lambda xy: [None] * len(xy)), {}, "shapes/S1"),
    "an empty geometry": Case(geometry(lambda xy: [Point(), *points(xy[1:])]), {}, "shapes/S1"),
    "lines": Case(geometry(lambda xy: [LineString([p, p + 5]) for p in xy]), {}, "shapes/S1"),
    "a line among points": Case(geometry(lambda xy: [LineString([[0, 0], [5, 5]]), *points(xy[1:])]), {}, "shapes/S1"),
    "several squares each": Case(
        geometry(lambda xy: [MultiPolygon([box(*p, *(p + 2)), box(*(p + 3), *(p + 5))]) for p in xy]), {}, "shapes/S1"
    ),
    "squares of no size": Case(geometry(lambda xy: [box(*p, *p) for p in xy]), {}, "shapes/S1"),
    "a place that is NaN": Case(geometry(lambda xy: points(np.r_[[[NAN, NAN]], xy[1:]])), {}, "shapes/S1"),
    "a place that is infinite": Case(geometry(lambda xy: points(np.r_[[[INF, 5.0]], xy[1:]])), {}, "shapes/S1"),
    "far from the image": Case(geometry(lambda xy: points(xy + 1e6)), {}, "images/S1_full_image"),
    "a radius of zero": Case(radius(0.0), {}, "shapes/S1"),
    "a negative radius": Case(radius(-7.0), {}, "shapes/S1"),
    "an infinite radius": Case(radius(INF), {}, "shapes/S1"),
    "a radius of NaN": Case(radius(NAN), {}, "shapes/S1"),
    "radii of all sizes": Case(radius(np.linspace(1, 20, 225)), {}, "shapes/S1"),
    "NaN in the transformation": Case(moved([[1, 0, NAN], [0, 1, 0], [0, 0, 1]]), {}, "S1"),
    "an infinite transformation": Case(moved([[INF, 0, 0], [0, 1, 0], [0, 0, 1]]), {}, "S1"),
    "a singular transformation": Case(moved([[0, 0, 0], [0, 0, 0], [0, 0, 1]]), {}, "S1"),
    "a shear": Case(moved([[1, 0.5, 0], [0, 1, 0], [0, 0, 1]]), {}, "shapes/S1"),
    "NaN in the image's transformation": Case(
        moved([[NAN, 0, 0], [0, 1, 0], [0, 0, 1]], "S1_full_image"), {}, "images/S1_full_image"
    ),
    "an image of no size": Case(moved([[0, 0, 0], [0, 0, 0], [0, 0, 1]], "S1_full_image"), {}, "images/S1_full_image"),
    "spots that overlap": Case(None, {"spot_um": 400.0, "pitch_um": 100.0}, "spot_um"),
}
FINE_SPOTS = {"in metres": in_metres}


def pixels(values):
    return image(np.asarray(values))


def empty_pyramid(sdata):
    sdata.images.data["S1_full_image"] = xr.DataTree()


def lazy(shape):
    """An image that is declared, not there."""
    return image(da.zeros((3, *shape), chunks=(3, 4096, 4096), dtype=np.uint8))


def fail(block):
    raise RuntimeError("Zstd decompression error")


def failing(sdata):
    """Pixels that cannot be decoded."""
    there = da.zeros((3, *SIZE), chunks=(3, 100, 320), dtype=np.uint8)
    image(da.map_blocks(fail, there, meta=np.zeros((0, 0, 0), np.uint8)))(sdata)


IMAGES = {
    "two channels": Case(pixels(RGB[:2].astype(np.uint8)), {}, "images/S1_full_image"),
    "five channels": Case(pixels(np.concatenate([RGB, RGB])[:5].astype(np.uint8)), {}, "images/S1_full_image"),
    "channels last": Case(pixels(np.zeros((*SIZE, 3), np.uint8)), {}, "images/S1_full_image"),
    "complex": Case(pixels(RGB.astype(complex)), {}, "images/S1_full_image"),
    "booleans": Case(pixels(RGB > 150), {}, "images/S1_full_image"),
    "text": Case(pixels(RGB.astype("U3")), {}, "images/S1_full_image"),
    "NaN": Case(pixels(np.full((3, *SIZE), NAN, np.float32)), {}, "images/S1_full_image"),
    "infinite": Case(pixels(np.full((3, *SIZE), INF, np.float32)), {}, "images/S1_full_image"),
    "negative": Case(pixels(RGB.astype(np.float32) - 150), {}, "images/S1_full_image"),
    "negative integers": Case(pixels(RGB.astype(np.int16) - 150), {}, "images/S1_full_image"),
    "too bright": Case(pixels(RGB.astype(np.float32) * 1000), {}, "images/S1_full_image"),
    "too bright integers": Case(pixels(RGB.astype(np.int64) * 10**6), {}, "images/S1_full_image"),
    "one pixel": Case(pixels(np.full((3, 1, 1), 150, np.uint8)), {}, "images/S1_full_image"),
    "an empty pyramid": Case(empty_pyramid, {}, "images/S1_full_image"),
    "pixels that cannot be read": Case(failing, {}, "images/S1_full_image"),
    "200,000 x 200,000 declared pixels": Case(lazy((200_000, 200_000)), {}, "images/S1_full_image"),
    "ten million columns": Case(lazy((4_000, 10**7)), {}, "images/S1_full_image"),
}


def mask(element, systems=None):
    """Shapes or labels called ``mask``."""

    def apply(sdata):
        set_transformation(element, systems or {"S1": Identity()}, set_all=True)
        kind = (
            sdata.points
            if isinstance(element, dd.DataFrame)
            else sdata.labels
            if hasattr(element, "dims")
            else sdata.shapes
        )
        kind.data["mask"] = element  # past the checks of SpatialData, as files that others write come

    return apply


def shapes(*geometries):
    return GeoDataFrame(geometry=list(geometries))


FLAT = Affine([[1, 0, 0], [0, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
TISSUE = {"tissue_key": "mask"}
ALL = box(0, 0, 320, 400)
MASKS = {
    "a singular transformation": Case(mask(shapes(ALL), {"S1": FLAT}), TISSUE, "mask"),
    "labels with a singular transformation": Case(
        mask(Labels2DModel.parse(np.ones(SIZE, np.uint8), dims=("y", "x")), {"S1": FLAT}), TISSUE, "mask"
    ),
    "a line": Case(mask(shapes(LineString([[0, 0], [50, 50]]))), TISSUE, "mask"),
    "a point": Case(mask(shapes(Point(5, 5))), TISSUE, "mask"),
    "no geometry": Case(mask(shapes()), TISSUE, "mask"),
    "a geometry that is None": Case(mask(shapes(None)), TISSUE, "mask"),
    "an empty polygon": Case(mask(shapes(Polygon())), TISSUE, "mask"),
    "elsewhere": Case(mask(shapes(ALL), {"elsewhere": Identity()}), TISSUE, "mask"),
    "labels without a label": Case(
        mask(Labels2DModel.parse(np.zeros(SIZE, np.uint8), dims=("y", "x"))), TISSUE, "mask"
    ),
    "points": Case(mask(PointsModel.parse(pd.DataFrame({"x": [5.0], "y": [5.0]}))), TISSUE, "mask"),
}


def counts_of(rows, columns):
    """Zeros in some counts."""

    def change(counts):
        counts[rows, columns] = 0
        return counts

    return x(change)


FINE_TABLES |= {
    "a gene of zeros": counts_of(slice(None), 0),
    "a spot of zeros": counts_of(0, slice(None)),
    "zeros alone": counts_of(slice(None), slice(None)),
    "large counts": x(lambda counts: counts * 1e6),
    "a name that climbs": names("../x"),
    "a name with a slash": names("a/b"),
    "a name of 300 letters": names("x" * 300),
    "one gene": part(slice(None), [1]),
}
FINE_IMAGES = {
    "as it is": None,
    "constant": pixels(np.full((3, *SIZE), 200, np.uint8)),
    "black": pixels(np.zeros((3, *SIZE), np.uint8)),
    "noise": pixels(RGB.astype(np.uint8)),
    "RGBA": pixels(np.concatenate([RGB, np.full_like(RGB[:1], 255)]).astype(np.uint8)),
    "16 bit": pixels((RGB * 256).astype(np.uint16)),
    "floating point": pixels((RGB / 255).astype(np.float32)),
}
