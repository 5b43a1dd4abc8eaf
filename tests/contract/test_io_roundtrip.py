"""Positions survive: from image and spots through the grid to elements on disk, under any affine, to 1e-6 bin."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd
from hypothesis import given, settings
from hypothesis import strategies as st
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine, Sequence, get_transformation

from hadmst_sc.io import as_spatialdata, read_observation, write_prediction
from hadmst_sc.section.observation import Prediction

HELPERS = runpy.run_path(str(Path(__file__).parents[1] / "io" / "conftest.py"))
visium_section, stand_in = HELPERS["visium_section"], HELPERS["stand_in"]
XY = ("x", "y")
BIN_PX = 5  # 20 µm bins, 4 µm pixels


def affine_of(element, system: str) -> np.ndarray:
    return get_transformation(element, to_coordinate_system=system).to_affine_matrix(XY, XY)


def apply(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    return np.atleast_2d(xy) @ matrix[:2, :2].T + matrix[:2, 2]


def as_affine(matrix: np.ndarray) -> Affine:
    return Affine(matrix, input_axes=XY, output_axes=XY)


def in_bins(world: np.ndarray, expected: np.ndarray, bins_to_world: np.ndarray) -> float:
    """Largest distance between two sets of world points, in bins."""
    inverse = np.linalg.inv(bins_to_world)
    return float(np.abs(apply(inverse, world) - apply(inverse, expected)).max())


def hot_spot(sdata: sd.SpatialData, spot: int) -> sd.SpatialData:
    """Only one spot has counts."""
    table = sdata["table"].copy()
    x = np.zeros(table.shape, np.float32)
    x[spot] = 100
    table.X = x
    del sdata["table"]
    sdata["table"] = table
    return sdata


def placed(image_to_world: np.ndarray, px_to_own: np.ndarray, image: np.ndarray | None = None) -> sd.SpatialData:
    """A section whose image lies in the world by one affine, and whose spots come in coordinates of their own."""
    plain = visium_section(image=image)
    own = apply(px_to_own, np.c_[plain["S1"].geometry.x, plain["S1"].geometry.y])
    size = np.sqrt(abs(np.linalg.det(px_to_own[:2, :2])))
    own_to_world = Sequence([as_affine(np.linalg.inv(px_to_own)), as_affine(image_to_world)])
    circles = ShapesModel.parse(
        own, geometry=0, radius=size * 55 / 8, index=plain["S1"].index, transformations={"world": own_to_world}
    )
    element = Image2DModel.parse(
        plain["S1_full_image"]["scale0"]["image"].data,
        dims=("c", "y", "x"),
        transformations={"world": as_affine(image_to_world)},
    )
    return sd.SpatialData(images={"he": element}, shapes={"S1": circles}, tables={"table": plain["table"]})


def similarity(angle: float, size: float, mirror: bool, shift: tuple[float, float]) -> np.ndarray:
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * size
    return np.block([[turn @ np.diag([-1 if mirror else 1, 1]), np.array(shift)[:, None]], [np.zeros((1, 2)), 1]])


shifts = st.tuples(*[st.floats(-1000, 1000)] * 2)
similarities = st.builds(similarity, st.floats(0, 6.3), st.floats(0.01, 100), st.booleans(), shifts)
# Any invertible affine of the image: shear and unequal scales too, since spots and image share it.
affines = st.builds(
    lambda a, b, squeeze: a @ np.diag([1, squeeze, 1]) @ b, similarities, similarities, st.floats(0.3, 3)
)


def check_hot_spot(sdata: sd.SpatialData, result: sd.SpatialData, spot: int, system: str, centres: np.ndarray) -> None:
    """The result's hot bins surround the spot: in the image, the labels and the table, through the world."""
    point = sdata["S1"].geometry.iloc[spot]
    world = apply(affine_of(sdata["S1"], system), [point.x, point.y])
    to_world = affine_of(result["superres"], system)
    assert in_bins(apply(to_world, centres[spot, ::-1]), world, to_world) <= 1e-6
    np.testing.assert_allclose(affine_of(result["superres_bins"], system), to_world)
    hot = np.argwhere(np.asarray(result["superres"].data[0]) > 0)
    x, y = apply(np.linalg.inv(to_world), world)[0]
    assert (np.abs(hot + 0.5 - [y, x]) <= 55 / 40 + 0.5 + 1e-6).all()  # radius of the spot and half a bin
    row, col = hot[0]
    table = result["superres_table"]
    at = table.obsm["spatial"][(table.obs["array_row"] == row) & (table.obs["array_col"] == col)]
    assert in_bins(at, apply(to_world, [col + 0.5, row + 0.5]), to_world) <= 1e-6
    assert np.asarray(result["superres_bins"].data)[row, col] == row * 64 + col + 1


@settings(max_examples=8)
@given(image_to_world=affines, px_to_own=similarities, spot=st.integers(0, 224))
def test_one_hot_spot_lands_in_its_footprint_under_any_affine(image_to_world, px_to_own, spot):
    sdata = hot_spot(placed(image_to_world, px_to_own), spot)
    obs = read_observation(sdata, "he", bin_um=20.0, genes=["gene-0"])
    result = as_spatialdata(sdata, stand_in(obs), obs.source, "superres")
    check_hot_spot(sdata, result, spot, "world", obs.measurement.centres)


def test_one_hot_spot_lands_in_its_footprint_after_disk(tmp_path):
    turn = similarity(0.7, 3.0, True, (40.0, -7.0))
    sdata = hot_spot(placed(turn @ np.diag([1, 1.7, 1]), similarity(2.0, 0.1, False, (5.0, 6.0))), 77)
    sdata.write(tmp_path / "section.zarr")
    sdata = sd.read_zarr(tmp_path / "section.zarr")
    obs = read_observation(sdata, "he", bin_um=20.0, genes=["gene-0"])
    write_prediction(sdata, stand_in(obs), obs.source)
    shutil.move(tmp_path / "section.zarr", tmp_path / "moved.zarr")  # nothing refers to where it was written
    check_hot_spot(sdata, sd.read_zarr(tmp_path / "moved.zarr"), 77, "world", obs.measurement.centres)


@pytest.mark.parametrize(("row", "col"), [(0, 0), (399, 319), (123, 200), (200, 3)])
def test_one_bright_pixel_keeps_its_place_through_reading_and_disk(row, col, tmp_path):
    image = np.zeros((3, 400, 320), np.uint8)
    image[:, row, col] = 255
    turn = similarity(0.4, 2.0, False, (9.0, -5.0))
    sdata = placed(turn, np.eye(3), image)
    obs = read_observation(sdata, "he", bin_um=20.0, genes=["gene-0"])
    found = np.argwhere(obs.he[0] == 255)
    assert len(found) == 1
    y, x = (found[0] + 0.5) / obs.he_per_bin  # in bins
    bright = np.zeros((1, *obs.grid.shape), np.float32)
    bright[0, int(y), int(x)] = 1
    inside = np.ones(obs.grid.shape, bool)
    prediction = Prediction(obs.grid, obs.genes, bright, None, inside, inside)
    as_spatialdata(sdata, prediction, obs.source, "superres").write(tmp_path / "result.zarr")
    fresh = sd.read_zarr(tmp_path / "result.zarr")["superres"]
    to_world = affine_of(fresh, "world")
    world = apply(turn, [col + 0.5, row + 0.5])
    assert in_bins(apply(to_world, [x, y]), world, to_world) <= 1e-6
    place = np.argwhere(np.asarray(fresh.data[0]) == 1)
    assert (np.floor(apply(np.linalg.inv(to_world), world)[0][::-1] + 1e-9) == place[0]).all() and len(place) == 1


def dihedral(transpose: bool, flip_y: bool, flip_x: bool):
    """An element of the group of the square, on arrays ``(..., y, x)`` and on points (x, y) of a rectangle."""

    def on_array(values: np.ndarray) -> np.ndarray:
        values = values.swapaxes(-1, -2) if transpose else values
        return values[..., :: -1 if flip_y else 1, :: -1 if flip_x else 1]

    def on_points(xy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        (x, y), (height, width) = (xy.T[::-1], size[::-1]) if transpose else (xy.T, size)
        return np.c_[width - x if flip_x else x, height - y if flip_y else y]

    return on_array, on_points


@pytest.mark.parametrize("flips", [(t, y, x) for t in (False, True) for y in (False, True) for x in (False, True)])
def test_dihedral_transforms_of_image_and_spots_commute_with_reading(flips):
    on_array, on_points = dihedral(*flips)
    plain = visium_section()
    xy = np.c_[plain["S1"].geometry.x, plain["S1"].geometry.y]
    image = np.asarray(plain["S1_full_image"]["scale0"]["image"].data)
    turned_image = np.ascontiguousarray(on_array(image))
    turned = visium_section(size=turned_image.shape[1:], image=turned_image, xy=on_points(xy, image.shape[1:]))
    genes = ["gene-1", "gene-4"]
    for bin_um in (20.0, 40.0):
        one = read_observation(plain, "S1_full_image", bin_um=bin_um, genes=genes)
        other = read_observation(turned, "S1_full_image", bin_um=bin_um, genes=genes)
        np.testing.assert_array_equal(other.he, on_array(one.he))
        np.testing.assert_array_equal(other.counts, one.counts)
        np.testing.assert_allclose(other.measurement.coverage, on_array(one.measurement.coverage), atol=1e-9)
        np.testing.assert_array_equal(other.inside, on_array(one.inside))
        assert other.spots == one.spots


@pytest.mark.parametrize(("shift_x", "shift_y"), [(0, 1), (-3, 0), (2, 3)])
def test_shifting_the_spots_by_whole_bins_shifts_the_operator(shift_x, shift_y):
    plain = visium_section()
    xy = np.c_[plain["S1"].geometry.x, plain["S1"].geometry.y]
    xy = xy[(xy > 40).all(1) & (xy < [280, 360]).all(1)]
    kwargs = {"bin_um": 20.0, "genes": 1, "spot_um": 55, "pitch_um": 100}
    one = read_observation(visium_section(xy=xy), "S1_full_image", **kwargs)
    other = read_observation(visium_section(xy=xy + np.array([shift_x, shift_y]) * BIN_PX), "S1_full_image", **kwargs)
    rolled = np.roll(one.measurement.coverage, (shift_y, shift_x), (0, 1))
    np.testing.assert_allclose(other.measurement.coverage, rolled, atol=1e-9)
    np.testing.assert_allclose(other.measurement.centres - (shift_y, shift_x), one.measurement.centres, atol=1e-9)


def test_a_result_on_disk_is_read_without_computing_anything(tmp_path):
    sdata = visium_section()
    sdata.write(tmp_path / "section.zarr")
    sdata = sd.read_zarr(tmp_path / "section.zarr")
    obs = read_observation(sdata, "S1_full_image", bin_um=20.0, genes=2)
    prediction = stand_in(obs)
    write_prediction(sdata, prediction, obs.source)
    prediction.mean[:] = -1  # what is in the object comes from disk, not from these arrays
    assert float(sdata["superres"].min()) == 0
    assert sdata.is_self_contained()
