"""The image that scanpy and squidpy draw: pixel = coordinate × scale, wherever the section is."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from spatialdata.models import Image2DModel

from hadmst_sc.io import resample as module
from hadmst_sc.io.resample import thumbnail

HEIGHT, WIDTH = 120, 200
BRIGHT = np.array([150.0, 40.0])  # (x, y) centre of 16 × 16 pixels


def element(scale_factors=None):
    pixels = np.zeros((3, HEIGHT, WIDTH), np.uint8)
    pixels[1, 32:48, 142:158] = 200  # green: neither background nor padding
    return Image2DModel.parse(pixels, dims=("c", "y", "x"), scale_factors=scale_factors)


def turned(degrees: float, x: float, y: float, scale: float = 1.0) -> np.ndarray:
    angle = np.deg2rad(degrees)
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    return np.array([[cos, -sin, x], [sin, cos, y], [0, 0, 1]])


MATRICES = {
    "as it is": np.eye(3),
    "cropped": turned(0, 700, 300),
    "mirrored": np.array([[-1, 0, WIDTH], [0, 1, 0], [0, 0, 1.0]]),
    "upside down": np.array([[1, 0, 0], [0, -1, HEIGHT], [0, 0, 1.0]]),
    "quarter turn": turned(90, HEIGHT, 0),
    "turned": turned(30, 90, 20),
    "in µm": turned(0, 0, 0, 2.5),
    "wide": np.array([[3.0, 0, 10], [0, 1.5, 5], [0, 0, 1]]),
}


@pytest.mark.parametrize("size", [2000, 60])
@pytest.mark.parametrize("pyramid", [None, [2, 2]])
@pytest.mark.parametrize("name", MATRICES)
def test_a_bright_place_lies_at_its_coordinate_times_the_scale(name, pyramid, size, monkeypatch):
    monkeypatch.setattr(module, "THUMBNAIL", size)
    matrix = MATRICES[name]
    pixels, scale = thumbnail(element(pyramid), "he", matrix)
    weight = pixels[..., 1].astype(float) - pixels[..., 0]
    y, x = (np.indices(weight.shape) + 0.5).reshape(2, -1) @ weight.ravel() / weight.sum()
    expected = matrix[:2, :2] @ BRIGHT + matrix[:2, 2]
    np.testing.assert_allclose(np.array([x, y]) / scale, expected, atol=0.6 / scale)
    corners = np.array([[0, 0], [WIDTH, 0], [0, HEIGHT], [WIDTH, HEIGHT]]) @ matrix[:2, :2].T + matrix[:2, 2]
    assert pixels.shape[:2] == tuple(np.ceil(corners.max(0) * scale - 1e-6)[::-1])


@pytest.mark.parametrize("offset", [1e4, 1e6])
def test_a_section_far_from_zero_makes_no_huge_image(offset, monkeypatch):
    monkeypatch.setattr(module, "THUMBNAIL", 400)
    pixels, scale = thumbnail(element(), "he", turned(0, offset, 0))
    assert (len(pixels) - 1) * pixels.shape[1] <= 400**2  # a last row that is not whole comes on top
    assert pixels.shape[1] == np.ceil((offset + WIDTH) * scale - 1e-6)
    assert (pixels[:, : int(offset * scale) - 2] == 255).all()  # white up to where the section begins


def test_what_is_at_negative_coordinates_is_cut_off_and_said(caplog):
    with caplog.at_level(logging.WARNING, "hadmst_sc"):
        pixels, scale = thumbnail(element(), "he", turned(0, -100, 0))
    assert pixels.shape == (HEIGHT, WIDTH - 100, 3) and scale == 1
    assert (pixels[40, 50] == [0, 200, 0]).all()
    assert "negative coordinates" in caplog.text and "img=False" in caplog.text
    caplog.clear()
    assert thumbnail(element(), "he", turned(0, -900, -900))[0].shape == (1, 1, 3)
