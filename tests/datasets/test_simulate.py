"""Laws of the simulator: what is drawn, what it sums to, and what depends on what."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from hadmst_sc.phantom.cells import KINDS, draw_cells, splat
from hadmst_sc.phantom.fields import combed, enlarge, random_field, sample
from hadmst_sc.phantom.render import render
from hadmst_sc.phantom.simulate import HELD_OUT_STYLES, TRAIN_STYLES, Phantom, simulate
from hadmst_sc.phantom.tissue import draw_layout
from hadmst_sc.section.measurement import degrade

SMALL = {"size_um": 600.0, "n_genes": 16}
EVERY_STYLE = (*TRAIN_STYLES, *HELD_OUT_STYLES)


def arrays(phantom: Phantom) -> dict[str, np.ndarray]:
    o = phantom.observation
    own = {f.name: getattr(phantom, f.name) for f in dataclasses.fields(phantom) if f.name != "observation"}
    return own | {"he": o.he, "counts": o.counts, "A": o.measurement.matrix.toarray(), "inside": o.inside}


def test_the_same_seed_draws_the_same_section_and_leaves_the_global_generator_alone():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (arrays(simulate(seed, **SMALL)) for seed in (3, 3, 4))
    for name, value in first.items():
        np.testing.assert_array_equal(value, again[name], err_msg=name)
    assert not np.array_equal(first["he"], other["he"])
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_imposing_a_misregistration_moves_the_image_by_that_much_and_nothing_else():
    still = simulate(5, misregistration_um=0, **SMALL)
    moved = simulate(5, misregistration_um=(10.0, -15.0), **SMALL)
    assert moved.misregistration_um == (10.0, -15.0)
    dy, dx = 4, -6  # pixels of 2.5 µm
    np.testing.assert_array_equal(moved.observation.he[:, dy:, :dx], still.observation.he[:, :-dy, -dx:])
    for name, value in arrays(still).items():
        if name not in ("he", "misregistration_um", "displacement_um"):
            np.testing.assert_array_equal(value, arrays(moved)[name], err_msg=name)


def test_a_misregistration_given_as_length_has_that_length_to_a_pixel():
    for seed in range(5):
        assert np.hypot(*simulate(seed, misregistration_um=30.0, **SMALL).misregistration_um) == pytest.approx(
            30, abs=2
        )


def test_the_displacement_is_the_shift_where_nothing_is_bent():
    moved = simulate(5, misregistration_um=(10.0, -15.0), **SMALL)
    np.testing.assert_array_equal(moved.displacement_um, np.broadcast_to([[[10.0]], [[-15.0]]], (2, 60, 60)))


def test_rotation_and_deformation_change_the_image_and_nothing_else():
    still = simulate(5, misregistration_um=0, **SMALL)
    bent = simulate(5, misregistration_um=0, rotation_deg=3.0, deformation_um=12.0, **SMALL)
    for name, value in arrays(still).items():
        if name not in ("he", "displacement_um"):
            np.testing.assert_array_equal(value, arrays(bent)[name], err_msg=name)
    turned = simulate(5, misregistration_um=0, rotation_deg=3.0, **SMALL).displacement_um
    field = bent.displacement_um - turned
    assert np.sqrt((field**2).sum(0).mean()) == pytest.approx(12.0, rel=0.02)
    sin, cos = np.sin(np.radians(3)), np.cos(np.radians(3))
    np.testing.assert_allclose(turned[1, -1], sin * 295 + (cos - 1) * np.arange(-295, 296, 10), atol=0.2)


def test_what_the_spots_saw_lies_in_the_image_where_the_displacement_says():
    draw = {"size_um": 800.0, "n_genes": 4, "augment": False}
    still = simulate(6, misregistration_um=0, **draw)
    bent = simulate(6, misregistration_um=(5.0, 10.0), rotation_deg=2.0, deformation_um=10.0, **draw)
    iy, ix = np.mgrid[12:68, 12:68]
    y, x = ((index + 0.5) * 10 + one[12:68, 12:68] for index, one in zip((iy, ix), bent.displacement_um, strict=True))
    here = still.observation.he.astype(float)[:, iy * 4 + 2, ix * 4 + 2]
    there = bent.observation.he.astype(float)[:, np.rint(y / 2.5).astype(int), np.rint(x / 2.5).astype(int)]
    elsewhere = bent.observation.he.astype(float)[:, iy * 4 + 2, ix * 4 + 2]
    right, wrong = (np.corrcoef(here.ravel(), one.ravel())[0, 1] for one in (there, elsewhere))
    assert right > 0.8 > wrong + 0.1


@pytest.fixture(scope="module")
def many() -> list[Phantom]:
    return [simulate(seed, size_um=400.0, n_genes=16) for seed in range(40)]


def test_random_draws_use_every_training_style_and_never_a_held_out_one():
    drawn = Counter(draw_layout(np.random.default_rng(seed), 8, None, augment=False).style for seed in range(300))
    assert set(drawn) == set(TRAIN_STYLES)
    assert min(drawn.values()) > 20
    assert not set(HELD_OUT_STYLES) & set(TRAIN_STYLES)
    assert set(HELD_OUT_STYLES) == {"layers", "rings"}


def test_half_of_the_sections_are_registered_and_none_is_off_by_more_than_20_um(many):
    shifts = np.array([phantom.misregistration_um for phantom in many])
    assert 10 <= (shifts == 0).all(1).sum() <= 30
    assert np.abs(shifts).max() <= 20


def test_every_clarity_occurs_and_decides_which_types_are_visible(many):
    assert {phantom.clarity for phantom in many} == {"blank", "partial", "clear"}
    for phantom in many:
        share = phantom.visible.mean()
        assert {"blank": share == 0, "partial": 0 < share < 1, "clear": share == 1}[phantom.clarity]


def test_all_kinds_are_present_in_equal_numbers_where_types_of_both_sorts_exist():
    phantom = simulate(0, size_um=800, n_genes=32, augment=False)
    assert set(Counter(phantom.kinds).values()) == {4}
    assert set(phantom.kinds) == set(KINDS)
    assert [name.rpartition("_")[0] for name in phantom.observation.genes] == list(phantom.kinds)


@pytest.mark.parametrize("style", EVERY_STYLE)
@pytest.mark.parametrize("augment", [True, False])
def test_rates_are_finite_nonnegative_and_zero_off_the_tissue(style, augment):
    phantom = simulate(1, style=style, augment=augment, **SMALL)
    inside = phantom.observation.inside
    assert phantom.style == style
    assert np.isfinite(phantom.rate).all() and phantom.rate.min() >= 0
    assert phantom.rate[:, ~inside].sum() == 0
    assert phantom.rate.dtype == np.float32
    assert len(np.unique(phantom.regions[phantom.regions >= 0])) >= 2
    # In tissue means: of a region, or under a spot that reaches over the edge of the tissue.
    np.testing.assert_array_equal(inside, (phantom.regions >= 0) | (phantom.observation.measurement.coverage > 0))


@pytest.mark.parametrize("augment", [True, False])
def test_counts_scatter_about_a_times_rate_times_efficiency_as_poisson(augment):
    phantom = simulate(7, size_um=1200, n_genes=40, depth=(5, 20), augment=augment)
    o = phantom.observation
    expected = degrade(phantom.rate, o.measurement) * phantom.efficiency[:, None]
    dispersion = 0.05 if augment else 0.0  # at most
    variance = expected + dispersion * expected**2
    z = (o.counts - expected).sum(0) / np.sqrt(variance.sum(0))
    assert np.abs(z).max() < 4
    assert augment or stats.kstest(z, "norm").pvalue > 1e-3
    scatter = ((o.counts - expected) ** 2).sum() / expected.sum()
    assert 0.9 < scatter < 1.1 * variance.sum() / expected.sum()
    assert phantom.efficiency.mean() == pytest.approx(1)
    assert augment == (phantom.efficiency.std() > 0.01)


def test_what_a_spot_catches_follows_its_efficiency():
    phantom = simulate(2, size_um=1000, n_genes=40, depth=(20, 40))
    o = phantom.observation
    caught = o.counts.sum(1) / degrade(phantom.rate, o.measurement).sum(1)
    assert phantom.efficiency.std() > 0.2
    assert np.corrcoef(caught, phantom.efficiency)[0, 1] > 0.95


def test_depth_is_the_sections_mean_count_per_spot():
    phantom = simulate(2, depth=(12.0, 12.0), **SMALL)
    o = phantom.observation
    per_spot = phantom.rate[:, o.inside].mean(1) * o.measurement.area.mean()
    np.testing.assert_allclose(per_spot, 12.0, rtol=1e-4)


def test_spots_touch_tissue_lie_on_the_image_and_keep_their_pitch():
    for bin_um, spot_um, pitch_um, neighbours in ((10, 55, 100, 6), (20, 100, 200, 4)):
        kwargs = {"size_um": 1600, "n_genes": 1, "bin_um": bin_um, "spot_um": spot_um, "pitch_um": pitch_um}
        phantom = simulate(8, augment=False, **kwargs)
        m = phantom.observation.measurement
        assert ((m.matrix @ (phantom.regions >= 0).ravel().astype(float)) > 0).all()
        np.testing.assert_allclose(m.area * bin_um**2, np.pi * spot_um**2 / 4, rtol=1e-9)
        centres = m.centres * bin_um
        distance = np.linalg.norm(centres[:, None] - centres[None], axis=2)
        assert distance[distance > 0].min() == pytest.approx(pitch_um)
        assert (np.isclose(distance, pitch_um).sum(1)).max() == neighbours


def test_array_indices_are_those_of_the_lattice():
    for seed in range(6):
        phantom = simulate(seed, size_um=500, n_genes=1, augment=False)
        y, x = (phantom.observation.measurement.centres * 10).T
        row, column = phantom.array_index.T
        assert ((row + column) % 2 == 0).all() and phantom.array_index.min() in (0, 1)
        assert np.ptp(y - row * 50 * np.sqrt(3)) == pytest.approx(0, abs=1e-6)
        assert np.ptp(x - column * 50) == pytest.approx(0, abs=1e-6)


def test_blank_images_tell_nothing_about_regions_and_clear_ones_do():
    """Share of the variance of the image's green, which both stains absorb, that lies between regions."""

    def explained_share(seed: int, clarity: str) -> float:
        rng = np.random.default_rng(seed)
        layout = draw_layout(rng, 60, "voronoi", augment=False)
        image, _ = render(rng, layout, draw_cells(rng, layout, clarity), clarity=clarity, he_um=2.5, augment=False)
        green = image[1].reshape(60, 4, 60, 4).mean((1, 3))
        regions = [green[layout.regions == r] for r in np.unique(layout.regions)]
        return sum(v.size * (v.mean() - green.mean()) ** 2 for v in regions) / (green.size * green.var())

    blank, clear = ([explained_share(seed, clarity) for seed in range(10)] for clarity in ("blank", "clear"))
    assert max(blank) < 0.06
    assert np.median(clear) > 0.25


@pytest.mark.parametrize(
    ("kwargs", "k", "shape"),
    [
        ({}, 4, (60, 60)),
        ({"bin_um": 20.0}, 8, (30, 30)),
        ({"bin_um": 20.0, "he_um": 5.0}, 4, (30, 30)),
        ({"bin_um": 40.0}, 8, (15, 15)),
        ({"bin_um": 8.0}, 3, (75, 75)),
        ({"bin_um": 2.0}, 1, (300, 300)),
        ({"bin_um": 10.0, "he_um": 16.0}, 1, (60, 60)),
    ],
)
def test_the_image_has_the_whole_pixels_per_bin_that_its_resolution_allows(kwargs, k, shape):
    phantom = simulate(3, size_um=600.0, n_genes=2, augment=False, **kwargs)
    o = phantom.observation
    assert (o.he_per_bin, o.grid.shape, o.grid.px_per_bin) == (k, shape, k)
    assert o.he_um == max(2.5, kwargs.get("he_um", 2.5))


def test_the_anatomy_does_not_depend_on_the_bins():
    fine, coarse = (simulate(4, bin_um=bin_um, augment=False, **SMALL) for bin_um in (10.0, 20.0))
    np.testing.assert_array_equal(fine.cell_um, coarse.cell_um)
    summed = fine.rate.reshape(16, 30, 2, 30, 2).sum((2, 4))
    both = fine.observation.inside.reshape(30, 2, 30, 2).all((1, 3)) & coarse.observation.inside
    for a, b in zip(summed, coarse.rate, strict=True):
        assert np.corrcoef(a[both], b[both])[0, 1] > 0.97


def test_cells_share_themselves_over_bins_by_area():
    """A square of 10 µm around (12, 25) µm has 0.3 of itself above y = 10 µm and 0.7 below, all in column 2."""
    share = splat(np.array([[12.0, 25.0]]), (4, 4), 10.0).toarray().reshape(4, 4)
    np.testing.assert_allclose(share[:2, 2], [0.3, 0.7], atol=1e-6)
    assert share.sum() == pytest.approx(1)
    halves = splat(np.array([[12.0, 20.0]]), (4, 4), 10.0).toarray().reshape(4, 4)
    np.testing.assert_allclose(halves[:2, 1:3], [[0.15, 0.15], [0.35, 0.35]], atol=1e-6)
    corner = splat(np.array([[0.0, 0.0]]), (4, 4), 20.0).toarray()
    assert corner.sum() == pytest.approx(0.25)  # three quarters of the cell lie beyond the corner


def test_fields_are_standardised_and_as_smooth_as_asked():
    field = random_field(np.random.default_rng(0), (256, 256), 8.0)
    assert field.mean() == pytest.approx(0, abs=1e-5) and field.std() == pytest.approx(1, abs=1e-4)
    # White noise smoothed by a Gaussian of s correlates exp(-d²/4s²) at distance d.
    at = (field[:, :-16] * field[:, 16:]).mean()
    assert at == pytest.approx(np.exp(-(16**2) / (4 * 8**2)), abs=0.12)


def test_enlarging_keeps_ramps_and_sampling_takes_the_cell_of_a_point():
    ramp = np.tile(np.arange(5, dtype=np.float32) + 0.5, (3, 1))
    np.testing.assert_allclose(enlarge(ramp, 4)[5, 2:-2], (np.arange(2, 18) + 0.5) / 4)
    assert sample(ramp, np.array([[9.9, 39.9]])) == 3.5
    assert sample(ramp, np.array([[30.0, 50.0]])) == 4.5  # the far edge belongs to the last cell


def test_combing_follows_the_angle():
    texture = combed(np.random.default_rng(0), np.zeros((128, 128)), 8)
    along = np.corrcoef(texture[:, :-4].ravel(), texture[:, 4:].ravel())[0, 1]
    across = np.corrcoef(texture[:-4].ravel(), texture[4:].ravel())[0, 1]
    assert along > 0.6 and abs(across) < 0.1


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"size_um": 605.0}, r"`size_um` needs to be a multiple of `bin_um`=10, but is 605.*Pass `size_um=60"),
        ({"size_um": 50.0}, r"`size_um` needs room for a spot of 55 µm .* but is 50"),
        ({"n_genes": 0}, r"`n_genes` needs to be at least 1, but is 0"),
        ({"depth": (0.0, 1.0)}, r"`depth` needs 0 < low <= high"),
        ({"style": "liver"}, r"`style` needs one of .*'rings'.* but is 'liver'"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        simulate(0, **kwargs)


def test_the_simulator_needs_neither_spatialdata_nor_torch():
    heavy = "('torch', 'spatialdata', 'pandas')"
    code = f"import sys, hadmst_sc.phantom.simulate; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
