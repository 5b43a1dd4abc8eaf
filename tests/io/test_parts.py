"""The parts of reading, each with a known answer."""

from __future__ import annotations

import runpy
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from skimage.draw import disk
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity, Scale

from hadmst_sc.io import read_observation
from hadmst_sc.io.counts import most_informative
from hadmst_sc.io.lattice import lattice
from hadmst_sc.io.resample import resample_he, resample_rgb
from hadmst_sc.io.spots import Footprints, scale
from hadmst_sc.io.tissue import detect_tissue
from hadmst_sc.section.errors import ContractError, Problems
from hadmst_sc.section.grid import Grid
from hadmst_sc.section.measurement import discs

HELPERS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
visium_section, hexagonal = HELPERS["visium_section"], HELPERS["hexagonal"]


def quiet() -> Problems:
    return Problems("test")


def rgb(values, chunks=None) -> xr.DataArray:
    return xr.DataArray(da.from_array(values, chunks=chunks or values.shape), dims=("c", "y", "x"))


# --- resampling ---


def test_resampling_at_step_one_is_the_identity():
    image = np.random.default_rng(0).integers(0, 256, (3, 37, 41), np.uint8)
    np.testing.assert_array_equal(resample_rgb(rgb(image), "he", (1, 1), (37, 41), quiet()), image)


@pytest.mark.parametrize("step", [2.0, 2.5, 3.7])
def test_lazy_chunks_change_nothing(step):
    image = np.random.default_rng(0).integers(0, 256, (3, 600, 41), np.uint8)
    shape = (int(np.ceil(600 / step)), int(np.ceil(41 / step)))
    whole = resample_rgb(rgb(image), "he", (step, step), shape, quiet())
    parts = resample_rgb(rgb(image, (1, 67, 13)), "he", (step, step), shape, quiet())
    np.testing.assert_array_equal(whole, parts)


def test_cells_beyond_the_image_repeat_its_last_pixel():
    image = np.broadcast_to(np.arange(8, dtype=np.uint8) * 10, (3, 8, 8)).copy()
    out = resample_rgb(rgb(image), "he", (1, 1), (10, 11), quiet())
    assert (out[:, :, 8:] == 70).all() and (out[:, 8:] == out[:, 7:8]).all()


def test_every_chunk_of_a_lazy_image_is_decoded_once():
    reads = []

    def load(block_info=None):
        reads.append(block_info[None]["chunk-location"])
        return np.zeros(block_info[None]["chunk-shape"], np.uint8)

    image = da.map_blocks(
        load, chunks=((3,), (300, 300, 100), (90,)), dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8)
    )
    resample_rgb(xr.DataArray(image, dims=("c", "y", "x")), "he", (7, 7), (100, 13), quiet())
    assert sorted(reads) == [(0, 0, 0), (0, 1, 0), (0, 2, 0)]


def pyramid(height, width):
    """Ramps along y and x, whose coarse level is an exact area average with factors that are no power of two."""

    def ramps(h, w):
        y, x = np.mgrid[:h, :w] + 0.5
        return np.stack([y * height / h, x * width / w, x * width / w]) * 5

    tree = Image2DModel.parse(
        ramps(height, width), dims=("c", "y", "x"), scale_factors=[4], transformations={"s": Identity()}
    )
    h, w = (tree["scale1"]["image"].sizes[axis] for axis in "yx")
    tree["scale1"]["image"].data = da.from_array(ramps(h, w))
    return tree


def test_level_factors_are_ratios_of_sizes_not_powers_of_two():
    tree = pyramid(47, 39)  # coarse level 11 x 9: factors 4.27 and 4.33, not 4
    um_per_px, bin_um = 0.5, 2.5 * 4
    grid = Grid.over_image((47, 39), um_per_px, bin_um)
    he, he_um = resample_he(tree, "he", grid, quiet())
    assert he_um == pytest.approx(0.5 * 39 / 9)
    k = he.shape[1] // grid.shape[0]
    assert k == 4
    fine = grid.px_per_bin / k
    centres = (np.arange(5) + 1.5) * fine  # away from the borders, where a ramp is its own average
    np.testing.assert_allclose(he[0, 1:6, 0] / 5, centres, atol=0.12)  # rounding to 1/5 of a pixel
    np.testing.assert_allclose(he[1, 0, 1:6] / 5, centres, atol=0.12)


@pytest.mark.parametrize(
    ("um_per_px", "level_um", "k"), [(0.25, 2.0, 4), (0.5, 2.0, 4), (2.0, 2.0, 4), (4.0, 4.0, 2), (16.0, 16.0, 1)]
)
def test_level_and_pixels_per_bin_follow_from_what_the_model_needs(um_per_px, level_um, k):
    image = Image2DModel.parse(np.zeros((3, 64, 64), np.uint8), dims=("c", "y", "x"), scale_factors=[2, 2, 2])
    grid = Grid.over_image((64, 64), um_per_px, 10.0)
    he, he_um = resample_he(image, "he", grid, quiet())
    assert he_um == pytest.approx(level_um)
    assert he.shape == (3, grid.shape[0] * k, grid.shape[1] * k)


def test_twelve_bit_white_is_white():
    image = np.full((3, 4, 4), 4095, np.uint16)
    assert (resample_rgb(rgb(image), "he", (1, 1), (4, 4), quiet()) == 255).all()


# --- geometry of the spots ---


def disc_lattice(kind: str, drawn: float, pitch: float = 10.0, jitter: float = 0.0) -> Footprints:
    xy = hexagonal((200, 200), pitch, pitch)
    if kind == "square":
        xy = np.stack(np.meshgrid(np.arange(1, 19), np.arange(1, 19)), -1).reshape(-1, 2) * pitch
    return Footprints(xy + np.random.default_rng(0).normal(0, jitter, xy.shape), drawn * pitch, False)


@pytest.mark.parametrize(
    ("kind", "drawn", "sizes"),
    [
        ("hexagonal", 0.55, (10.0, 55, 100)),
        ("hexagonal", 0.601, (10.0, 55, 100)),  # as Space Ranger draws them: CytAssist 11 mm
        ("hexagonal", 0.649, (10.0, 55, 100)),  # many
        ("hexagonal", 0.698, (10.0, 55, 100)),  # DLPFC, CytAssist 6.5 mm
        ("square", 0.50, (20.0, 100, 200)),
        ("hexagonal", 0.50, None),
        ("square", 0.65, None),
        ("hexagonal", 0.80, None),
        ("hexagonal", 1.00, None),
    ],
)
def test_platform_is_recognised_by_ratio_and_lattice_or_asked_for(kind, drawn, sizes):
    problems = quiet()
    found = scale(disc_lattice(kind, drawn), "spots", None, None, problems)
    if sizes is None:
        assert found is None and "`spot_um` and `pitch_um` are needed" in problems.found[0][1]
    else:
        assert (found.um_per_px, found.spot_um, found.pitch_um) == pytest.approx(sizes, rel=1e-6)


@pytest.mark.parametrize(
    ("given", "drawn", "expected"),
    [
        ({"spot_um": 30, "pitch_um": 80}, 0.3, (8.0, 30)),
        ({"spot_um": None, "pitch_um": 80}, 0.3, (8.0, 24)),  # the drawn size
        ({"spot_um": None, "pitch_um": 100}, 0.65, (10.0, 55)),  # the platform's size
        ({"spot_um": 30, "pitch_um": None}, 0.3, (10.0, 30)),
        ({"spot_um": 55, "pitch_um": None}, 0.65, (10.0, 55)),
    ],
)
def test_given_sizes_are_used(given, drawn, expected):
    found = scale(disc_lattice("hexagonal", drawn), "spots", **given, problems=quiet())
    assert (found.um_per_px, found.spot_um) == pytest.approx(expected, rel=1e-6)


def test_pitch_of_noisy_positions_is_not_biased_as_the_nearest_neighbour_is():
    noisy = disc_lattice("square", 0.5, jitter=0.4)
    assert lattice(noisy.xy).pitch == pytest.approx(10, rel=0.02)  # the nearest neighbour gives 9.4


def test_pitch_survives_missing_spots():
    xy = disc_lattice("hexagonal", 0.55).xy
    assert lattice(xy[np.random.default_rng(0).random(len(xy)) < 0.5]).pitch == pytest.approx(10, rel=1e-6)


# --- genes ---


def test_depth_alone_is_not_informative_and_pattern_is():
    rng = np.random.default_rng(0)
    depth, half = rng.gamma(4, 1, 1000), np.arange(1000) < 500
    rates = np.stack([depth * 50, depth * 50, depth * (half + 0.1) * 4, depth * 0.001], 1)
    ranked = most_informative(sparse.csr_matrix(rng.poisson(rates)))
    assert ranked[0] == 2 and ranked[-1] == 3  # the last is seen in too few spots


def test_asking_for_fewer_genes_gives_the_first_of_more():
    sdata = visium_section()
    few, more = (read_observation(sdata, "S1_full_image", bin_um=40.0, genes=n).genes for n in (3, 6))
    assert more[:3] == few and len(set(more)) == 6


def test_names_keep_the_order_in_which_they_were_given():
    sdata = visium_section()
    obs = read_observation(sdata, "S1_full_image", bin_um=40.0, genes=["gene-5", "gene-0"])
    assert obs.genes == ("gene-5", "gene-0")
    np.testing.assert_array_equal(obs.counts, sdata["table"].X[:, [5, 0]].toarray())


# --- tissue ---


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


def test_detected_tissue_is_the_stained_disc_without_its_hole():
    sdata = visium_section()
    y, x = np.mgrid[:80, :64] * 5 + 2.5
    disc = np.hypot(y - 200, x - 160) < 144
    hole = np.hypot(y - 200, x - 128) < 32
    row, col = ((axis // 5).astype(int) for axis in (sdata["S1"].geometry.y, sdata["S1"].geometry.x))
    keep = (disc & ~hole)[row, col]
    table = sdata["table"][keep].copy()
    del sdata["table"]
    sdata["table"] = table
    obs = read_observation(sdata, "S1_full_image", bin_um=20.0)
    under = obs.measurement.coverage > 0
    assert overlap(obs.inside, (disc & ~hole) | under) > 0.95
    within = np.hypot(y - 200, x - 128) < 32 - 2 * 5  # bins on the border are mixed
    assert not (obs.inside & within & ~under).any()


@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_image_leaves_the_distance_to_the_spots(value, caplog):
    xy = np.array([[160.0, 200.0], [185.0, 200.0]])
    sdata = visium_section(image=np.full((3, 400, 320), value, np.uint8), xy=xy)
    obs = read_observation(sdata, "S1_full_image", bin_um=20.0, spot_um=55, pitch_um=100)
    distance = np.linalg.norm(obs.grid.centres()[:, None] - obs.measurement.centres[None], axis=2).min(1)
    np.testing.assert_array_equal(obs.inside.ravel(), distance <= 1.5 * 5)
    assert "no contrast" in caplog.text


@pytest.mark.parametrize("shades", [1, 2])
def test_section_without_glass_is_all_tissue(shades):
    image = np.random.default_rng(0).integers(100, 140, (3, 400, 320), np.uint8)
    image[1] -= 40
    image[:, :, 160:] += np.uint8(60 * (shades - 1))  # pale half
    obs = read_observation(visium_section(image=image), "S1_full_image", bin_um=20.0)
    near = np.linalg.norm(obs.grid.centres()[:, None] - obs.measurement.centres[None], axis=2).min(1) <= 1.5 * 5
    np.testing.assert_array_equal(obs.inside.ravel(), near | (obs.measurement.coverage.ravel() > 0))


def test_spots_on_glass_do_not_make_glass_tissue():
    sdata = visium_section()  # 225 spots, half of them beside the tissue
    spots = sdata["S1"].geometry
    ambient = np.hypot(spots.y - 200, spots.x - 160).to_numpy() > 140
    counts = sdata["table"].X.toarray()
    counts[ambient] = counts[ambient] // 5
    sdata["table"].X = sparse.csr_matrix(counts)
    obs = read_observation(sdata, "S1_full_image", bin_um=20.0)
    y, x = np.mgrid[:80, :64] * 5 + 2.5
    glass = np.hypot(y - 200, x - 160) > 150
    assert not (obs.inside & glass & (obs.measurement.coverage == 0)).any()


@pytest.mark.parametrize("kind", ["labels", "polygon", "circle", "polygon with a hole"])
def test_mask_is_taken_by_bin_centres_through_its_transformation(kind):
    sdata = visium_section(xy=np.array([[160.0, 200.0], [185.0, 200.0]]))
    y, x = np.mgrid[:80, :64] * 5 + 2.5  # bin centres in image pixels
    expected = np.hypot(y - 200, x - 160) < 100
    if kind == "labels":
        mask = np.zeros((200, 160), np.uint32)
        mask[disk((100 - 0.5, 80 - 0.5), 50)] = 7
        expected = mask[(y // 2).astype(int), (x // 2).astype(int)] > 0
        sdata["mask"] = Labels2DModel.parse(
            mask, dims=("y", "x"), transformations={"S1": Scale([2, 2], axes=("x", "y"))}
        )
    else:
        turned = Affine([[0, 2, 0], [2, 0, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
        circle = ShapesModel.parse(np.array([[100.0, 80.0]]), geometry=0, radius=50.0)
        if kind != "circle":
            outline = circle.geometry.buffer(50, resolution=64)
            if "hole" in kind:
                outline = outline.difference(circle.geometry.buffer(20, resolution=64))
                expected &= np.hypot(y - 200, x - 160) >= 40
            circle = ShapesModel.parse(circle.drop(columns="radius").set_geometry(outline))
        circle.attrs = {}
        sdata["mask"] = ShapesModel.parse(circle, transformations={"S1": turned})
    obs = read_observation(sdata, "S1_full_image", bin_um=20.0, spot_um=55, pitch_um=100, tissue_key="mask")
    under = obs.measurement.coverage > 0
    assert ((obs.inside != (expected | under)).sum()) <= 4  # polygons and pixels only approach the circle


def test_mask_elsewhere_is_a_problem():
    sdata = visium_section()
    far = ShapesModel.parse(np.array([[5000.0, 5000.0]]), geometry=0, radius=9.0, transformations={"S1": Identity()})
    other = ShapesModel.parse(np.array([[5.0, 5.0]]), geometry=0, radius=9.0, transformations={"else": Identity()})
    sdata["far"], sdata["other"] = far, other
    with pytest.raises(ContractError, match="`tissue_key='far'`: covers no bin"):
        read_observation(sdata, "S1_full_image", tissue_key="far")
    with pytest.raises(ContractError, match="`tissue_key='other'`: shares no coordinate system"):
        read_observation(sdata, "S1_full_image", tissue_key="other")


@given(st.integers(0, 10**6), st.integers(5, 60))
def test_inside_holds_every_bin_under_a_spot_and_none_beyond_two_pitches(seed, size):
    rng = np.random.default_rng(seed)
    grid = Grid((size, size), 20.0, 5.0)
    spots = discs(rng.uniform(0, size, (6, 2)), 2.75, grid.shape)
    inside = detect_tissue(rng.integers(0, 256, (3, size * 2, size * 2), np.uint8), grid, spots, 100.0)
    distance = np.linalg.norm(grid.centres()[:, None] - spots.centres[None], axis=2).min(1).reshape(grid.shape)
    assert inside[spots.coverage > 0].all()
    assert not inside[(distance > 10.001) & (spots.coverage == 0)].any()
