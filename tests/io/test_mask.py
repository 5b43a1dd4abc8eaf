"""What is no mask is named, with a remedy that works; what is one is read through any good transformation."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from geopandas import GeoDataFrame
from shapely import GeometryCollection, LineString, MultiPolygon, Point, Polygon, box
from spatialdata.models import Labels2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

from hadmst_sc.io import read_observation

HELPERS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
visium_section, fingerprint = HELPERS["visium_section"], HELPERS["fingerprint"]
SPOT = np.array([[160.0, 200.0], [185.0, 200.0]])
GIVEN = {"image_key": "S1_full_image", "bin_um": 20.0, "spot_um": 55, "pitch_um": 100}


def affine(*rows):
    return Affine([*rows, [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


def shapes(*geometry, to=None):
    frame = GeoDataFrame(geometry=list(geometry))
    set_transformation(frame, {"S1": to or Identity()}, set_all=True)
    return frame


def labels(values, to=None):
    return Labels2DModel.parse(values.astype(np.uint32), dims=("y", "x"), transformations={"S1": to or Identity()})


SQUARE = box(40, 60, 240, 260)
WRONG = {
    "a line": (shapes(LineString([(0, 0), (300, 300)])), "its 1 shapes have no area"),
    "a point": (shapes(Point(50, 50)), "no area"),
    "no geometry": (shapes(None), "no area"),
    "empty polygons": (shapes(Polygon(), Polygon()), "its 2 shapes have no area"),
    "no shapes": (shapes(), "has no shapes"),
    "elsewhere": (shapes(box(5000, 5000, 5100, 5100)), "covers no bin"),
    "only zeros": (labels(np.zeros((400, 320))), "covers no bin"),
    "singular": (shapes(SQUARE, to=affine([1, 0, 0], [0, 0, 0])), "not finite or singular"),
    "not a number": (shapes(SQUARE, to=affine([1, 0, np.nan], [0, 1, 0])), "not finite or singular"),
    "singular labels": (labels(np.ones((400, 320)), to=affine([0, 0, 0], [0, 0, 0])), "not finite or singular"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_mask_is_named_and_detection_is_the_remedy(name):
    element, words = WRONG[name]
    sdata = visium_section(xy=SPOT)
    kind = sdata.labels if "labels" in name or "zeros" in name else sdata.shapes
    dict.__setitem__(kind.data, "mask", element)
    with pytest.raises(ValueError, match=r"`tissue_key='mask'`") as raised:
        read_observation(sdata, **GIVEN, tissue_key="mask")
    assert words in str(raised.value) and "pass `tissue_key=None`" in str(raised.value)
    assert read_observation(sdata, **GIVEN, tissue_key=None).inside.any()


def squared(obs):
    y, x = np.mgrid[:80, :64] * 5 + 2.5
    return ((x > 40) & (x < 240) & (y > 60) & (y < 260)) | (obs.measurement.coverage > 0)


GOOD = {
    "a polygon": shapes(SQUARE),
    "in metres": shapes(SQUARE, to=Identity()),
    "parts": shapes(box(40, 60, 140, 260), box(140, 60, 240, 260)),
    "several in one": shapes(MultiPolygon([box(40, 60, 140, 260), box(140, 60, 240, 260)])),
    "a line beside it": shapes(GeometryCollection([SQUARE, LineString([(0, 0), (300, 300)])])),
    "one lost": shapes(SQUARE, None, Polygon()),
}


@pytest.mark.parametrize("name", GOOD)
def test_areas_are_the_mask_whatever_lies_beside_them(name):
    sdata = visium_section(xy=SPOT)
    element = GOOD[name]
    if name == "in metres":
        element = shapes(box(40e-6, 60e-6, 240e-6, 260e-6))
        set_transformation(element, {"metres": Identity()}, set_all=True)
        for key in ("S1", "S1_full_image"):
            set_transformation(sdata[key], {"metres": Scale([1e-6, 1e-6], axes=("x", "y"))}, set_all=True)
    dict.__setitem__(sdata.shapes.data, "mask", element)
    obs = read_observation(sdata, **GIVEN, tissue_key="mask")
    np.testing.assert_array_equal(obs.inside, squared(obs))


def test_a_good_system_is_taken_where_another_is_broken():
    sdata = visium_section(xy=SPOT)
    mask = ShapesModel.parse(GeoDataFrame(geometry=[SQUARE]), transformations={"S1": affine([1, 0, 0], [0, 0, 0])})
    set_transformation(mask, Identity(), "other")
    for key in ("S1", "S1_full_image"):
        set_transformation(sdata[key], Identity(), "other")
    sdata["mask"] = mask
    obs = read_observation(sdata, **GIVEN, coordinate_system="S1", tissue_key="mask")
    np.testing.assert_array_equal(obs.inside, squared(obs))


def circles(radius):
    frame = GeoDataFrame({"radius": radius}, geometry=[Point(100, 100), Point(180, 200)])
    set_transformation(frame, {"S1": Identity()}, set_all=True)
    return frame


def test_a_column_called_radius_does_not_grow_polygons():
    sdata = visium_section(xy=SPOT)
    element = shapes(SQUARE)
    element["radius"] = 80.0
    dict.__setitem__(sdata.shapes.data, "mask", element)
    obs = read_observation(sdata, **GIVEN, tissue_key="mask")
    np.testing.assert_array_equal(obs.inside, squared(obs))


@pytest.mark.parametrize("radius", [[60.0, np.nan], [60.0, -1.0], [60.0, np.inf], ["60", "60 px"]])
def test_a_circle_without_a_radius_is_named_and_not_dropped(radius):
    sdata = visium_section(xy=SPOT)
    dict.__setitem__(sdata.shapes.data, "mask", circles(radius))
    with pytest.raises(ValueError, match=r"radius, but that of 1 of 2 shapes is not.*pass `tissue_key=None`"):
        read_observation(sdata, **GIVEN, tissue_key="mask")


def test_a_radius_in_text_is_the_number_that_it_says():
    areas = []
    for radius in ([60.0, 60.0], ["60", "60.0"]):
        sdata = visium_section(xy=SPOT)
        dict.__setitem__(sdata.shapes.data, "mask", circles(radius))
        areas.append(read_observation(sdata, **GIVEN, tissue_key="mask").inside)
    np.testing.assert_array_equal(*areas)
