"""A small result with the structure that `io.write` makes, under a rotated and reflected coordinate system."""

from __future__ import annotations

import anndata as ad
import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from shapely import Point, Polygon, box
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Scale, Sequence

UM_PER_PX, BIN_UM, SHAPE = 2.0, 10.0, (18, 24)  # image of 90 × 120 pixels, 5 pixels per bin
GENES = ["flat", "ramp", "spike"]
SPOTS_UM = np.array([[60.0, 50.0], [160.0, 50.0], [110.0, 130.0]])  # (x, y) from the corner of the image
SPOT_UM = 40.0
COUNTS = np.array([[4, 8, 0], [4, 0, 2], [4, 2, 0]], np.float32)
WORLD = Affine([[0, -3, 400], [-3, 0, 700], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


def maps() -> np.ndarray:
    """``(genes, ny, nx)`` counts per bin."""
    ny, nx = SHAPE
    spike = np.zeros(SHAPE)
    spike[3, 7] = 5
    return np.stack([np.ones(SHAPE), np.tile(np.arange(nx) / nx, (ny, 1)), spike]).astype(np.float32)


def tissue() -> np.ndarray:
    """``(ny, nx)`` bool: all but a frame of two bins."""
    inside = np.zeros(SHAPE, bool)
    inside[2:-2, 2:-2] = True
    return inside


def _spots(square: bool, to_world: dict) -> gpd.GeoDataFrame:
    px, radius = SPOTS_UM / UM_PER_PX, SPOT_UM / UM_PER_PX / 2
    index = [10, 11, 12]
    if square:
        corners = [box(x - radius, y - radius, x + radius, y + radius) for x, y in px]
        return ShapesModel.parse(gpd.GeoDataFrame(geometry=corners, index=index), transformations=to_world)
    circles = gpd.GeoDataFrame({"radius": radius}, geometry=[Point(*p) for p in px], index=index)
    return ShapesModel.parse(circles, transformations=to_world)


def _result_table(inside: np.ndarray, hr: np.ndarray, provenance: dict) -> ad.AnnData:
    ids = np.flatnonzero(inside) + 1
    obs = pd.DataFrame({"region": pd.Categorical(["superres_bins"] * len(ids)), "bin_id": ids})
    obs.index = obs.index.astype(str)
    table = ad.AnnData(hr[:, inside].T, obs=obs, var=pd.DataFrame(index=GENES), uns={"hadmst_sc": provenance})
    return TableModel.parse(table, region="superres_bins", region_key="region", instance_key="bin_id")


def make_result(std: bool = True, square: bool = False, **stated: float | str | dict) -> SpatialData:
    """A section of three spots, its image with a pyramid, and a result called ``superres``."""
    he = np.random.default_rng(0).integers(0, 255, (3, 90, 120), np.uint8)
    world, bins = {"world": WORLD}, {"world": Sequence([Scale([5, 5], axes=("x", "y")), WORLD])}
    inside, hr = tissue(), np.where(tissue(), maps(), np.float32(np.nan))
    # The rows of the table are not in the order of the shapes, as after a filter or a shuffle.
    order = [2, 0, 1]
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * 3), "spot": np.array([10, 11, 12])[order]}, list("cab"))
    counts = ad.AnnData(COUNTS[order], obs=obs, var=pd.DataFrame(index=GENES))
    provenance = {
        "image_key": "he",
        "table_key": "table",
        "shapes_key": "spots",
        "coordinate_system": "world",
        "layer": "none",  # as a store keeps None
        "bin_um": BIN_UM,
        "calibration": {"coverage": 0.9, "n_spots": 100},
        "um_per_px": UM_PER_PX,
        "px_per_bin": BIN_UM / UM_PER_PX,
        **stated,
    }
    images = {
        "he": Image2DModel.parse(he, dims=("c", "y", "x"), transformations=world, scale_factors=[2, 2]),
        "superres": Image2DModel.parse(hr, dims=("c", "y", "x"), c_coords=GENES, transformations=bins),
    }
    if std:
        images["superres_std"] = Image2DModel.parse(hr / 2, dims=("c", "y", "x"), c_coords=GENES, transformations=bins)
    labels = np.where(inside, np.arange(inside.size).reshape(SHAPE) + 1, 0).astype(np.uint32)
    return SpatialData(
        images=images,
        labels={"superres_bins": Labels2DModel.parse(labels, dims=("y", "x"), transformations=bins)},
        shapes={"spots": _spots(square, world)},
        tables={
            "table": TableModel.parse(counts, region="spots", region_key="region", instance_key="spot"),
            "superres_table": _result_table(inside, hr, provenance),
        },
    )


CELLS_UM = np.stack(np.meshgrid(np.arange(10.0, 240, 20), np.arange(30.0, 160, 20)), -1).reshape(-1, 2)  # (x, y)
CELL_UM = 7.0


def add_cells(sdata: SpatialData) -> SpatialData:
    """Hexagons with a table as `tl.to_cells` makes it; those outside the tissue have no counts."""
    turn = np.arange(6) * np.pi / 3
    corners = [CELL_UM * np.c_[np.cos(turn), np.sin(turn)] + at for at in CELLS_UM]
    names = [f"cell_{number}" for number in range(len(CELLS_UM))]
    hexagons = gpd.GeoDataFrame(geometry=[Polygon(one / UM_PER_PX) for one in corners], index=names)
    sdata["cells"] = ShapesModel.parse(hexagons, transformations={"world": WORLD})
    counts = np.c_[np.ones(len(CELLS_UM)), CELLS_UM[:, 0] / 100, CELLS_UM[:, 1] > 100].astype(np.float32)
    counts[(CELLS_UM[:, 0] < 20) | (CELLS_UM[:, 0] > 220)] = np.nan
    obs = pd.DataFrame({"region": pd.Categorical(["cells"] * len(names)), "cell": names}, names)
    table = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES))
    table.layers.update(std=0.5 * np.sqrt(counts), low=0.5 * counts, high=2 * counts)
    order = np.random.default_rng(0).permutation(len(names))
    sdata["cell_counts"] = TableModel.parse(table[order], region="cells", region_key="region", instance_key="cell")
    return sdata


@pytest.fixture
def result_with_cells() -> SpatialData:
    return add_cells(make_result())


@pytest.fixture
def result() -> SpatialData:
    return make_result()


@pytest.fixture
def result_without_std() -> SpatialData:
    return make_result(std=False)


@pytest.fixture
def result_of_squares() -> SpatialData:
    return make_result(square=True)


@pytest.fixture
def result_with_stated_size() -> SpatialData:
    """The run was given a spot diameter of 30 µm, which differs from the circles."""
    return make_result(spot_um=30.0, pitch_um=100.0)


@pytest.fixture
def registered():
    """Makes a result whose provenance has the given record of its registration."""
    return lambda record: make_result(registration=record)
