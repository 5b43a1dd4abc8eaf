"""Bad input gets one error that names the argument, what was found and the remedy; ``sdata`` is unchanged."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from geopandas import GeoDataFrame
from scipy import sparse
from shapely import Polygon, affinity, box
from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, set_transformation

from hadmst_sc.io import read_observation
from hadmst_sc.section.errors import ContractError

HELPERS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
visium_section, fingerprint = HELPERS["visium_section"], HELPERS["fingerprint"]


def edit(change):
    def apply(sdata):
        table = sdata["table"].copy()
        change(table)
        del sdata["table"]
        sdata["table"] = table

    return apply


def edit_x(row, column, value):
    def change(table):
        x = table.X.toarray()
        x[row, column] = value
        table.X = sparse.csr_matrix(x)

    return edit(change)


def image(pixels, **kwargs):
    def apply(sdata):
        del sdata["S1_full_image"]
        sdata["S1_full_image"] = Image2DModel.parse(
            pixels, dims=("c", "y", "x"), transformations={"S1": Identity()}, **kwargs
        )

    return apply


def region(element, name="cells"):
    def apply(sdata):
        sdata[name] = element
        table = sdata["table"].copy()
        table.obs["region"] = pd.Categorical([name] * table.n_obs)
        del sdata["table"]
        del table.uns["spatialdata_attrs"]
        sdata["table"] = TableModel.parse(table, region=name, region_key="region", instance_key="spot_id")

    return apply


def polygons(*outlines):
    frame = GeoDataFrame(geometry=list(outlines))
    return region(ShapesModel.parse(frame, transformations={"S1": Identity()}))


def set_radius(value):
    return lambda sdata: sdata["S1"].__setitem__("radius", value)


def move_spots(sdata):
    shift = Affine([[1, 0, 200.0], [0, 1, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(sdata["S1"], {"S1": shift}, set_all=True)


def stretch(sdata):
    wide = Affine([[1.1, 0, 0], [0, 1, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(sdata["S1"], {"S1": wide}, set_all=True)


def two_regions(sdata):
    xy = np.array([[50.0, 50.0], [75.0, 50.0]])
    sdata["S2"] = ShapesModel.parse(xy, geometry=0, radius=7.0, transformations={"S1": Identity()})
    table = sdata["table"].copy()
    table.obs["region"] = pd.Categorical(["S2"] * 2 + ["S1"] * (table.n_obs - 2))
    del sdata["table"], table.uns["spatialdata_attrs"]
    sdata["table"] = TableModel.parse(table, region=["S1", "S2"], region_key="region", instance_key="spot_id")


def two_same_systems(sdata):
    for name in ("S1", "S1_full_image"):
        set_transformation(sdata[name], {"a": Identity(), "b": Identity()}, set_all=True)


def duplicate_ids(table):
    table.obs["spot_id"] = [0, 0, *range(2, table.n_obs)]


def duplicate_index(sdata):
    sdata.shapes["S1"] = sdata["S1"].set_index(pd.Index([0, 0, *range(2, len(sdata["S1"]))]))


def duplicate_names(table):
    table.var_names = ["twice", "twice", *table.var_names[2:]]


def text_ids(table):
    table.obs["spot_id"] = "spot " + table.obs["spot_id"].astype(str)


def unannotated(table):
    del table.uns["spatialdata_attrs"]


def column_lost(sdata):
    del sdata["table"].obs["spot_id"]


def no_x(table):
    table.X = None


def logged(table):
    table.layers["raw_counts"] = table.X.copy()
    table.X = table.X.log1p()


def singular(sdata):
    flat = Affine([[1, 0, 0], [0, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    set_transformation(sdata["S1_full_image"], {"S1": flat}, set_all=True)


GREY = np.full((1, 400, 320), 200, np.uint8)
RGB = np.full((3, 400, 320), 0.5, np.float32)
POINTS = PointsModel.parse(pd.DataFrame({"x": [5.0, 6.0], "y": [5.0, 6.0]}), transformations={"S1": Identity()})
LABELS = Labels2DModel.parse(np.ones((400, 320), np.uint32), dims=("y", "x"), transformations={"S1": Identity()})
ONE_SPOT = np.array([[100.0, 100.0]])
COLUMN = np.array([[100.0, 50.0 + 30 * i] for i in range(6)])

# name: (change of a fresh section, arguments, exception, everything that the message must say)
CASES = {
    "no image": (None, {"image_key": "he"}, KeyError, ["`image_key='he'`", "sdata.images", "S1_full_image"]),
    "no table": (
        None,
        {"table_key": "t"},
        KeyError,
        ["`table_key='t'`", "Available: ['table']", "`table_key='table'`"],
    ),
    "no layer": (None, {"layer": "counts"}, KeyError, ["`layer='counts'`", "sdata['table'].layers"]),
    "no shapes": (
        None,
        {"shapes_key": "S9"},
        KeyError,
        ["`shapes_key='S9'`", "Available: ['S1']", "`shapes_key='S1'`"],
    ),
    "no system": (None, {"coordinate_system": "global"}, KeyError, ["`coordinate_system='global'`", "['S1']"]),
    "no gene": (None, {"genes": ["gene_1", "gene-2"]}, KeyError, ["1 of 2 names", "'gene_1'", "close to ['gene-"]),
    "no tissue": (None, {"tissue_key": "mask"}, KeyError, ["`tissue_key='mask'`", "Available: ['S1']"]),
    "not a region": (
        lambda sdata: sdata.shapes.__setitem__("S2", sdata["S1"].copy()),
        {"shapes_key": "S2"},
        ValueError,
        ["`shapes_key`", "one of ['S1']", "is 'S2'"],
    ),
    "genes is a name": (None, {"genes": "gene-1"}, TypeError, ["`genes`", "Pass `genes=['gene-1']`"]),
    "genes is a float": (None, {"genes": 2.5}, TypeError, ["`genes`", "is 2.5"]),
    "genes empty": (None, {"genes": []}, ValueError, ["`genes` needs at least one name", "is empty"]),
    "genes repeated": (None, {"genes": ["gene-1"] * 2}, ValueError, ["`genes`", "repeats some"]),
    "genes too many": (None, {"genes": 9}, ValueError, ["`genes` needs 1 to 8", "is 9"]),
    "genes zero": (None, {"genes": 0}, ValueError, ["`genes` needs 1 to 8", "is 0"]),
    "bin_um": (None, {"bin_um": 0.0}, ValueError, ["`bin_um` needs a positive length in µm, but is 0.0"]),
    "spot_um": (
        None,
        {"spot_um": -55},
        ValueError,
        ["`spot_um` needs a length of 0.1 to 5,000 µm, or None", "is -55"],
    ),
    "pitch_um": (None, {"pitch_um": np.nan}, ValueError, ["`pitch_um`", "nan"]),
    "spots outside": (
        move_spots,
        {},
        ContractError,
        [
            "images/S1_full_image",
            "of 225 spots are outside the image of 320 x 400",
            "spatialdata.get_extent(sdata['S1_full_image']",
        ],
    ),
    "stretched": (stretch, {}, ContractError, ["shapes/S1", "stretches by 1.1 and 1", "ellipses"]),
    "singular": (singular, {}, ContractError, ["images/S1_full_image", "cannot be inverted"]),
    "no shared system": (
        lambda sdata: set_transformation(sdata["S1"], {"elsewhere": Identity()}, set_all=True),
        {},
        ContractError,
        ["has the coordinate systems ['S1']", "['elsewhere']", "set_transformation(sdata['S1_full_image']"],
    ),
    "two systems": (
        two_same_systems,
        {},
        ContractError,
        ["`coordinate_system` is needed", "Pass `coordinate_system='a'`"],
    ),
    "two regions": (
        two_regions,
        {},
        ContractError,
        ["`shapes_key` is needed", "['S1', 'S2']", "Pass `shapes_key='S1'`"],
    ),
    "points": (
        region(POINTS),
        {},
        ContractError,
        ["spots have no diameter", "`spot_um=55, pitch_um=100`"],
    ),
    "labels": (region(LABELS), {}, ContractError, ["labels/cells: needs squares or discs of one size"]),
    "cells of all sizes": (
        set_radius(np.linspace(5, 9, 225)),
        {},
        ContractError,
        ["shapes/S1: needs spots of one size", "10 to 18 pixels"],
    ),
    "no size": (
        set_radius(np.full(225, np.nan)),
        {},
        ContractError,
        ["needs positive sizes", "the radius of 225 of 225 spots", "`sdata['S1']['radius'] = "],
    ),
    "unknown ratio": (
        set_radius(3.0),
        {},
        ContractError,
        ["`spot_um` and `pitch_um` are needed", "0.240", "spot_um=55"],
    ),
    "rotated squares": (
        polygons(affinity.rotate(box(10, 10, 20, 20), 30), box(30, 10, 40, 20)),
        {},
        ContractError,
        ["shapes/cells: needs squares of one rotation", "rotated by different angles"],
    ),
    "rectangles": (polygons(box(10, 10, 20, 30), box(30, 10, 40, 20)), {}, ContractError, ["unequal edges"]),
    "triangles": (polygons(Polygon([(1, 1), (5, 1), (1, 5)])), {}, ContractError, ["needs circles or squares"]),
    "squares of unknown size": (
        polygons(box(10, 10, 20, 20), box(30, 10, 40, 20)),
        {},
        ContractError,
        ["`spot_um` is needed", "squares of 10 pixels", "Pass their edge in µm: `spot_um=8`"],
    ),
    "squares of two sizes": (
        polygons(box(10, 10, 20, 20), box(30, 10, 40, 20)),
        {"spot_um": 16, "pitch_um": 8},
        ContractError,
        ["`spot_um=16` is larger than `pitch_um=8`"],
    ),
    "grey": (image(GREY), {}, ContractError, ["images/S1_full_image", "3 (RGB) or 4 (RGBA) channels, but has 1"]),
    "channels last": (image(np.zeros((400, 320, 3), np.uint8)), {}, ContractError, ["but has 400"]),
    "complex": (image(RGB.astype(np.complex64)), {}, ContractError, ["uint8, uint16 or floating point", "complex64"]),
    "float too large": (
        image(RGB * 1000),
        {},
        ContractError,
        ["float32 needs values in [0, 1] or [0, 255]", "500 to 500"],
    ),
    "float negative": (image(RGB - 1), {}, ContractError, ["[0, 1] or [0, 255]", "-0.5"]),
    "float NaN": (image(RGB * np.nan), {}, ContractError, ["[0, 1] or [0, 255]", "nan"]),
    "integers too large": (image((RGB * 2e6).astype(np.int32)), {}, ContractError, ["int32 needs values in 0..65535"]),
    "not annotating": (
        edit(unannotated),
        {},
        ContractError,
        ["tables/table", "names no region", "`sdata['table'].uns['spatialdata_attrs'] = {'region': 'S1'"],
    ),
    "column lost": (column_lost, {}, ContractError, ["tables/table", "['spot_id']", "not in `obs`"]),
    "duplicate ids": (edit(duplicate_ids), {}, ContractError, ["`obs['spot_id']` has duplicates"]),
    "duplicate index": (duplicate_index, {}, ContractError, ["shapes/S1: its index has duplicates"]),
    "ids of another type": (edit(text_ids), {}, ContractError, ["no value of `obs['spot_id']`", "'spot 0' and 0"]),
    "duplicate genes": (
        edit(duplicate_names),
        {},
        ContractError,
        ["['twice']", "sdata['table'].var_names_make_unique()"],
    ),
    "no X": (edit(no_x), {}, ContractError, ["needs a matrix of counts, but there is none"]),
    "NaN": (edit_x(5, 3, np.nan), {}, ContractError, ["tables/table/X", "spot 'spot-5' has nan of gene 'gene-3'"]),
    "infinite": (edit_x(5, 3, np.inf), {}, ContractError, ["spot 'spot-5' has inf of gene 'gene-3'"]),
    "negative": (edit_x(6, 2, -3), {}, ContractError, ["spot 'spot-6' has -3 of gene 'gene-2'", "min -3"]),
    "logarithms": (
        edit(logged),
        {},
        ContractError,
        ["100 % of the non-zero values are not whole", "Pass `layer='raw_counts'`"],
    ),
    "one spot": (
        lambda s: None,
        {"xy": ONE_SPOT},
        ContractError,
        ["`spot_um` and `pitch_um` are needed", "single spot"],
    ),
    "column of spots": (
        lambda s: None,
        {"xy": COLUMN},
        ContractError,
        ["`spot_um` and `pitch_um` are needed", "0.458"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_problem_is_named_and_nothing_changes(name):
    change, arguments, kind, says = CASES[name]
    arguments = {"image_key": "S1_full_image", "bin_um": 20.0} | arguments
    sdata = visium_section(xy=arguments.pop("xy", None))
    if change is not None:
        change(sdata)
    before = fingerprint(sdata)
    with pytest.raises(kind) as raised:
        read_observation(sdata, arguments.pop("image_key"), **arguments)
    for words in says:
        assert words in str(raised.value)
    assert str(raised.value)[0] != '"'  # KeyError would print its repr
    assert fingerprint(sdata) == before


def test_all_problems_are_reported_at_once():
    sdata = visium_section()
    for change in (edit(logged), move_spots, set_radius(3.0)):
        change(sdata)
    with pytest.raises(ContractError) as raised:
        read_observation(sdata, "S1_full_image", bin_um=-1.0, genes=None)
    assert len(raised.value.problems) == 4
    assert str(raised.value).startswith("cannot pair image 'S1_full_image' with table 'table' (4 problems):")


def test_two_missing_keys_are_one_contract_error():
    with pytest.raises(ContractError) as raised:
        read_observation(visium_section(), "he", table_key="t")
    assert len(raised.value.problems) == 2


def test_a_gene_that_is_not_asked_for_may_hold_anything():
    sdata = visium_section()
    edit_x(5, 3, np.nan)(sdata)
    assert read_observation(sdata, "S1_full_image", bin_um=20.0, genes=["gene-1"]).counts.shape == (225, 1)


def test_element_without_transformations_is_named():
    sdata = visium_section()
    sdata["S1_full_image"]["scale0"]["image"].attrs.pop("transform", None)
    with pytest.raises(ContractError, match=r"images/S1_full_image: has the coordinate systems \[\]"):
        read_observation(sdata, "S1_full_image")


def test_all_zero_genes_and_spots_are_read_as_they_are():
    sdata = visium_section()
    table = sdata["table"].copy()
    x = table.X.toarray()
    x[4], x[:, 2] = 0, 0
    table.X = sparse.csr_matrix(x)
    del sdata["table"]
    sdata["table"] = table
    obs = read_observation(sdata, "S1_full_image", bin_um=20.0, genes=["gene-2", "gene-1"])
    assert obs.counts[:, 0].sum() == 0 and obs.counts[4].sum() == 0


def test_reading_raises_only_our_errors_for_an_empty_object():
    with pytest.raises(KeyError, match="image_key"):
        read_observation(sd.SpatialData(tables={"table": visium_section()["table"]}), "he")
