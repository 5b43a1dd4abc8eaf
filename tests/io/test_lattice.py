"""Hexagonal or square, and how far apart: whatever is missing, moved or turned."""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc.io.lattice import fitted_pitch, lattice
from hadmst_sc.io.spots import LEGACY, VISIUM, Footprints, scale
from hadmst_sc.section.errors import Problems

PITCH = 40.0


def array(kind: str, n: int = 14, degrees: float = 0.0) -> np.ndarray:
    row, column = (axis.ravel().astype(float) for axis in np.mgrid[:n, :n])
    if kind == "hexagonal":
        row, column = row * np.sqrt(3) / 2, column + row % 2 / 2
    sin, cos = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return np.c_[column, row] @ np.array([[cos, sin], [-sin, cos]]) * PITCH


@pytest.mark.parametrize("kind", ["hexagonal", "square"])
@pytest.mark.parametrize("degrees", [0, 3, 30, 45, 77])
@pytest.mark.parametrize(("missing", "noise"), [(0.0, 0.0), (0.6, 0.0), (0.0, 0.05), (0.3, 0.04)])
def test_kind_and_pitch_of_what_is_left_of_an_array(kind, degrees, missing, noise):
    rng = np.random.default_rng(degrees)
    xy = array(kind, degrees=degrees)
    xy = xy[rng.random(len(xy)) >= missing]
    xy = xy + rng.normal(0, noise * PITCH, xy.shape)
    found = lattice(xy)
    assert found.kind == kind and found.dense and not found.line
    assert found.pitch == pytest.approx(PITCH, rel=0.02 if noise else 1e-9)


@pytest.mark.parametrize("degrees", [-40, -3, 0, 12.5, 44])
def test_angle_of_a_square_array(degrees):
    assert np.degrees(lattice(array("square", degrees=degrees)).angle) == pytest.approx(degrees, abs=1e-9)


def test_one_row_has_no_kind_and_random_points_have_none():
    row = np.c_[np.arange(9.0), np.zeros(9)] * PITCH
    assert lattice(row).line and lattice(row).kind is None
    assert lattice(np.random.default_rng(0).uniform(0, 1000, (300, 2))).kind is None


@pytest.mark.parametrize("kind", ["hexagonal", "square"])
def test_twenty_spots_of_thousands_still_tell_the_pitch(kind):
    rng = np.random.default_rng(3)
    xy = array(kind, n=30, degrees=20)
    xy = xy[rng.permutation(len(xy))[:20]] + rng.normal(0, 0.01 * PITCH, (20, 2))
    assert fitted_pitch(xy, 0.8 * PITCH, 1.2 * PITCH, kind) == pytest.approx(PITCH, rel=0.005)
    other = {"hexagonal": "square", "square": "hexagonal"}[kind]
    assert fitted_pitch(xy, 0.8 * PITCH, 1.2 * PITCH, other) is None
    assert fitted_pitch(rng.uniform(0, 1200, (20, 2)), 0.8 * PITCH, 1.2 * PITCH, kind) is None


def scattered(kind: str, n: int, drawn: float) -> Footprints:
    rng = np.random.default_rng(1)
    xy = array(kind, n=30, degrees=5)
    return Footprints(xy[rng.permutation(len(xy))[:n]], drawn * PITCH, False)


@pytest.mark.parametrize("drawn", [0.55, 0.601, 0.649, 0.698])
@pytest.mark.parametrize("n", [20, 60, 400])
def test_visium_is_known_by_few_scattered_spots(n, drawn):
    found = scale(scattered("hexagonal", n, drawn), "spots", None, None, Problems(""))
    assert (found.spot_um, found.pitch_um) == VISIUM
    assert found.um_per_px == pytest.approx(100 / PITCH, rel=0.005)


def test_legacy_arrays_are_known_by_few_scattered_spots():
    found = scale(scattered("square", 20, 0.5), "spots", None, None, Problems(""))
    assert (found.spot_um, found.pitch_um) == LEGACY and found.um_per_px == pytest.approx(200 / PITCH, rel=0.005)


def test_few_spots_without_neighbours_take_the_diameter_and_say_so(caplog):
    prints = Footprints(np.array([[0.0, 0], [170, 30], [60, 260]]), 22.0, False)
    found = scale(prints, "spots", 55.0, 100.0, Problems(""))
    assert found.um_per_px == pytest.approx(2.5) and "few spots have a neighbour" in caplog.text
