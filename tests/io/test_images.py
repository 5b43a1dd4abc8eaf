"""Images as people have them read as the same H&E, or one message says what to do; each remedy is run."""

from __future__ import annotations

import logging
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import spatialdata
import xarray as xr
from spatialdata.models import Image2DModel, Image3DModel
from spatialdata.transformations import Affine, Scale

from hadmst_sc.io import read_observation
from hadmst_sc.section.errors import ContractError

HELPERS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
visium_section, fingerprint, tissue_image = (
    HELPERS[name] for name in ("visium_section", "fingerprint", "tissue_image")
)
HE = tissue_image((400, 320))
TURNED = Affine([[0.0, -2.0, 9.0], [2.0, 0.0, -3.0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))


def section(image, names=None, model=Image2DModel, dims=("c", "y", "x"), **kwargs):
    """A section with that image, which is twice turned: its transformations matter."""
    sdata = visium_section()
    for name in ("S1_full_image", "S1"):
        spatialdata.transformations.set_transformation(sdata[name], {"world": TURNED}, set_all=True)
    kwargs |= {"c_coords": names} if names else {}
    sdata.images["he"] = model.parse(image, dims=dims, transformations={"world": TURNED}, **kwargs)
    return sdata


def read(sdata, key="he"):
    return read_observation(sdata, key, bin_um=20.0, genes=2)


@pytest.fixture(scope="module")
def truth():
    return read(section(HE)).he.astype(int)


def warned(caplog, sdata, key="he"):
    with caplog.at_level(logging.WARNING, logger="hadmst_sc"):
        obs = read(sdata, key)
    return obs.he.astype(int), caplog.text


def mended(sdata):
    """Follow the message of the error, and read again."""
    before = fingerprint(sdata)
    with pytest.raises(ContractError) as raised:
        read(sdata)
    assert fingerprint(sdata) == before
    message = str(raised.value)
    exec(re.search(r"Make one: `(.*?)`", message)[1], {"sdata": sdata, "spatialdata": spatialdata, "numpy": np})
    return read(sdata, re.search(r"then pass `image_key='(.*?)'`", message)[1]).he.astype(int), message


# --- channels ---

OPAQUE = np.concatenate([HE, np.full_like(HE[:1], 255)])


@pytest.mark.parametrize(
    ("names", "order"),
    [
        (["Blue", "Green", "Red"], [2, 1, 0]),
        (["alpha", "red", "green", "blue"], [3, 0, 1, 2]),
        (["Channel:0:B", "Channel:1:G", "Channel:2:R"], [2, 1, 0]),
        (["greenChannel", "redChannel", "blueChannel"], [1, 0, 2]),
        (["b", "g", "r", "a"], [2, 1, 0, 3]),
        (["channel_0", "channel_1", "channel_2"], [0, 1, 2]),
    ],
)
def test_channels_are_read_by_their_names(names, order, truth, caplog):
    he, message = warned(caplog, section(OPAQUE[order], names))
    np.testing.assert_array_equal(he, truth)
    assert not message


@pytest.mark.parametrize("names", [["DAPI", "GFAP", "NeuN"], ["R", "G", "Cy5"], ["DAPI", "CD45", "18S", "SMA"]])
def test_channels_that_are_no_colours_are_named(names, caplog):
    _, message = warned(caplog, section(OPAQUE[: len(names)], names))
    assert "its channels are called" in message and "not red, green and blue" in message


# --- opacity ---


def cut_out(dtype=np.uint8, soft=False):
    """The tissue alone on a transparent black ground, and an opacity."""
    stained = np.ptp(HE.astype(int), axis=0) > 30
    alpha = np.where(stained, 255, 0)
    if soft:
        alpha[:, 150:170] = alpha[:, 150:170] // 2
    rgb = np.where(stained, HE, 0)
    full = 1 if np.dtype(dtype).kind == "f" else 257 if dtype == np.uint16 else 1
    image = np.concatenate([rgb, alpha[None]]) * full
    return (image / 255 if np.dtype(dtype).kind == "f" else image).astype(dtype)


def on_white(image):
    """``(4, y, x)`` in 0..255 with a straight opacity, drawn on white."""
    alpha = image[3] / 255
    return image[:3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("names", [None, ["r", "g", "b", "a"]])
@pytest.mark.parametrize("soft", [False, True])
def test_transparent_pixels_are_white(dtype, names, soft, caplog):
    if soft and names is None:
        pytest.skip("a fourth channel without a name has to be none or full nearly everywhere")
    white = read(section(on_white(cut_out(soft=soft).astype(float)).astype(np.float32)))
    he, message = warned(caplog, section(cut_out(dtype, soft), names))
    assert np.abs(he - white.he).max() <= 1 and not message
    assert (he[:, :10, :10] == 255).all()


def test_a_premultiplied_opacity_gives_the_same():
    straight = cut_out(soft=True).astype(float)
    premultiplied = np.concatenate([straight[:3] * straight[3] / 255, straight[3:]])
    one, other = (read(section((x / 255).astype(np.float32), list("rgba"))) for x in (straight, premultiplied))
    assert np.abs(one.he.astype(int) - other.he).max() <= 1


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_opacity_that_is_the_same_everywhere_says_nothing(value, truth):
    image = np.concatenate([HE, np.full_like(HE[:1], value)])
    np.testing.assert_array_equal(read(section(image, list("rgba"))).he, truth)


def test_a_fourth_channel_that_is_no_opacity_is_left_out(truth):
    fourth = np.random.default_rng(0).integers(0, 200, HE[:1].shape, np.uint8)
    np.testing.assert_array_equal(read(section(np.concatenate([HE, fourth]))).he, truth)


# --- depth and type ---


@pytest.mark.parametrize("bits", [9, 10, 12, 14, 16])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32])
def test_white_is_the_top_of_the_range_that_holds_the_maximum(bits, dtype, truth):
    """HE has values up to 249: scaled to any range they need its last bit."""
    image = (HE.astype(np.float64) * (2**bits - 1) / 255).round().astype(dtype)
    assert np.abs(read(section(image)).he.astype(int) - truth).max() <= 1


def test_small_integers_of_any_type_are_eight_bit(truth):
    for dtype in (np.int16, np.uint16, np.int64):
        np.testing.assert_array_equal(read(section(HE.astype(dtype))).he, truth)


@pytest.mark.parametrize("scale", [1, 255])
def test_an_overshoot_of_floating_point_is_cut(scale, truth):
    image = (HE / 255 * scale).astype(np.float32)
    image[:, :2] = 1.04 * scale
    image[:, 2:4] = -0.04 * scale
    he = read(section(image)).he.astype(int)
    assert (he[:, :2] == 255).all() and (he[:, 2:4] == 0).all()
    assert np.abs(he[:, 4:] - truth[:, 4:]).max() <= 1


UNREADABLE = {
    "grey": (lambda x: x[:1], "has 1. H&E needs colour", lambda x: np.repeat(x[:1], 3, 0)),
    "channels on x": (lambda x: np.moveaxis(x, 0, -1), "Its channels are on the x axis", lambda x: x),
    "32 bit": (
        lambda x: x.astype(np.uint32) * 16_000_000,
        "uint32 needs values in 0..65535",
        lambda x: x * (255 / 249),
    ),
    "negative": (lambda x: x.astype(np.int16) - 128, "needs values in 0..65535", None),
    "float of 16 bit": (lambda x: x * 257.0, "[0, 1] or [0, 255]", lambda x: x * (255 / 249)),
    "NaN": (
        lambda x: np.where(x.min(0) >= 240, np.nan, x / 255).astype(np.float32),
        "values that are nan or infinite",
        lambda x: np.where(x.min(0) >= 240, 255, x),
    ),
    "infinite": (
        lambda x: np.where(x.min(0) >= 240, np.inf, x / 255).astype(np.float32),
        "values that are nan or infinite",
        lambda x: np.where(x.min(0) >= 240, 255, x),
    ),
}


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("levels", [0, 1])
def test_the_remedy_makes_an_image_that_reads_as_it_should(name, levels):
    change, says, meant = UNREADABLE[name]
    he, message = mended(section(change(HE), scale_factors=[2] if levels and "axis" not in says else None))
    assert says in message and "(1 problem)" in message
    if meant is not None:
        assert np.abs(he - read(section(meant(HE.astype(float)).astype(np.float32))).he).max() <= 1


def test_one_plane_of_several_is_made_an_image(truth):
    planes = np.stack([HE // 2, HE, HE // 3], 1)
    turn = Scale([1.0, 1.0, 1.0], axes=("x", "y", "z"))
    sdata = section(HE)
    spatialdata.transformations.set_transformation(sdata["S1"], turn, to_coordinate_system="world")
    sdata.images["he"] = Image3DModel.parse(planes, dims=("c", "z", "y", "x"), transformations={"world": turn})
    he, message = mended(sdata)
    np.testing.assert_array_equal(he, truth)
    assert "has ('c', 'z', 'y', 'x')" in message


@pytest.mark.parametrize("image", [HE > 128, HE.astype(np.complex64), np.concatenate([HE, HE])])
def test_what_is_no_colour_image_is_named(image):
    with pytest.raises(ContractError, match="Pass the H&E as `image_key=`"):
        read(section(image))


def test_an_image_without_pixels_is_named():
    for empty in (HE[:, :0], HE[:, :, :0]):
        sdata = section(HE)
        sdata["he"].attrs, kept = {}, sdata["he"].attrs
        sdata.images.data["he"] = xr.DataArray(empty, dims=("c", "y", "x"), attrs=kept)
        with pytest.raises(ContractError, match="images/he: needs pixels, but has the shape"):
            read(sdata)


def test_an_empty_pyramid_is_named():
    sdata = section(HE)
    sdata.images.data["he"] = xr.DataTree()
    with pytest.raises(ContractError, match="images/he: needs pixels, but has no level"):
        read(sdata)


# --- no H&E ---


def fluorescence(scale, dtype):
    image = 255 - HE.astype(int)
    image[image < 60] = 2
    return (image * scale).astype(dtype)


@pytest.mark.parametrize(("scale", "dtype"), [(1, np.uint8), (30, np.uint16), (200, np.uint16), (1 / 255, np.float32)])
def test_fluorescence_is_doubted(scale, dtype, caplog):
    _, message = warned(caplog, section(fluorescence(scale, dtype), ["r", "g", "b"]))
    assert "as in fluorescence and not in H&E" in message


def test_he_with_black_padding_is_not_doubted(caplog):
    image = HE.copy()
    image[:, :, :40] = 0
    image[:, -60:] = 0
    assert "fluorescence" not in warned(caplog, section(image))[1]


@pytest.mark.parametrize("factor", [0.5, 1.0])
def test_a_dim_he_is_not_doubted(factor, caplog):
    assert "fluorescence" not in warned(caplog, section((HE * factor).astype(np.uint8)))[1]


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_an_image_of_one_value_is_said_to_have_no_contrast(value, dtype, caplog):
    assert "no contrast" in warned(caplog, section(np.full(HE.shape, value, dtype)))[1]


@pytest.mark.torch
@pytest.mark.parametrize("change", [lambda x: x.astype(np.uint16) * 16, lambda x: x.astype(np.float32)])
def test_plots_show_the_image_as_it_was_read(change, truth):
    from hadmst_sc.pl._result import Section
    from hadmst_sc.tl import superresolve

    sdata = section(change(HE))
    superresolve(sdata, "he", bin_um=20.0, genes=2, model=None, align=False, show_progress_bar=False)
    drawn = Section(sdata, "superres", None, None)
    pixels, _ = drawn.he(0.1, drawn.extent)
    assert np.abs(np.moveaxis(pixels, -1, 0).astype(int) - truth).max() <= 1
