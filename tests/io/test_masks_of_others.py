"""Tissue that other packages of the field have found is read as `tissue_key`."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
from geopandas import GeoDataFrame
from shapely import Point, box
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

from hadmst_sc.io import read_observation

HELPERS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
hexagonal, visium_section = HELPERS["hexagonal"], HELPERS["visium_section"]
IMAGE = "S1_full_image"
BINS_PER_PX = 4.0 / 20.0  # 4 µm per pixel, 20 µm per bin


def disc(x: np.ndarray, y: np.ndarray, edge: float = 0.0) -> np.ndarray:
    """Whether pixels lie in the tissue of `tissue_image`, at least `edge` pixels from its two borders."""
    return (np.hypot(y - 200, x - 160) < 144 - edge) & (np.hypot(y - 200, x - 128) > 32 + edge)


@pytest.fixture
def sdata():
    xy = hexagonal((400, 320), 25, 10)  # bins under a spot are tissue in any mask
    return visium_section(xy=xy[disc(*xy.T, edge=10)])


def agreement(sdata, key: str) -> float:
    """Bins that are tissue here and in the picture, over those that are tissue in one of them."""
    inside = read_observation(sdata, IMAGE, bin_um=20.0, tissue_key=key).inside
    y, x = (np.indices(inside.shape) + 0.5) / BINS_PER_PX
    return (inside & disc(x, y)).sum() / (inside | disc(x, y)).sum()


def test_labels_of_squidpy(sdata):
    squidpy = pytest.importorskip("squidpy")
    squidpy.experimental.im.detect_tissue(sdata, IMAGE, new_labels_key="tissue")
    assert agreement(sdata, "tissue") > 0.95


def test_polygons_of_sopa(sdata):
    """Regions of interest in pixels of the image from which they were segmented, with its transformation."""
    image = sdata["S1_lowres_image"]  # a quarter of the pixels
    tissue = Point(40, 50).buffer(36).difference(Point(32, 50).buffer(8))
    parts = GeoDataFrame(geometry=[tissue.intersection(box(0, 0, 40, 100)), tissue.intersection(box(40, 0, 80, 100))])
    sdata["region_of_interest"] = ShapesModel.parse(parts, transformations=get_transformation(image, get_all=True))
    assert agreement(sdata, "region_of_interest") > 0.95
