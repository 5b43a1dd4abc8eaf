"""Registration: what is off is found, what is right is not moved, and moving back is the inverse."""

from __future__ import annotations

import ast
import time
from dataclasses import replace

import numpy as np
import pytest

from hadmst_sc.alignment.evidence import RIDGES, Agreement, Pooled, leading_components, loo_errors, splines
from hadmst_sc.alignment.register import AFFINES, TURNS, Alignment, align_image, estimate_alignment
from hadmst_sc.alignment.warp import MAX_FIELD_STEPS, control_points
from hadmst_sc.phantom.simulate import HELD_OUT_STYLES, TRAIN_STYLES, Phantom, simulate
from hadmst_sc.section.features import he_features
from hadmst_sc.section.measurement import Measurement, pool

STYLES = TRAIN_STYLES + HELD_OUT_STYLES
FIRST_SEED = 960_000


def phantom(i: int, misregistration_um: tuple[float, float] = (0.0, 0.0)) -> Phantom:
    """Augmented section ``i`` of about 250 spots: damage, stains, bleed and blank images as in training."""
    return simulate(
        FIRST_SEED + i,
        size_um=1600.0,
        n_genes=32,
        style=STYLES[i % len(STYLES)],
        misregistration_um=misregistration_um,
    )


def error_um(found: Alignment, p: Phantom) -> float:
    """Mean distance over the spots between the displacement that was found and the true one."""
    y, x = p.observation.measurement.centres.astype(int).T
    centres_um = p.observation.measurement.centres * p.observation.grid.bin_um
    return float(np.hypot(*(found.displacement_um(centres_um) - p.displacement_um[:, y, x].T).T).mean())


def rich(**imposed: float) -> Phantom:
    """A larger section with plenty of counts, whose image is rotated or bent."""
    return simulate(
        3,
        size_um=2400.0,
        n_genes=24,
        augment=False,
        depth=(2.0, 40.0),
        misregistration_um=(0.0, 0.0),
        **imposed,
    )


STILL = Alignment(0.0, 0.0, 0.0, 0.0, False)


@pytest.fixture(scope="module")
def clear():
    """A section whose image tells much, 30 µm and -20 µm off."""
    return simulate(
        910_000, size_um=1400.0, n_genes=16, augment=False, depth=(2.0, 40.0), misregistration_um=(30.0, -20.0)
    )


def test_an_imposed_shift_is_found_with_its_sign(clear):
    shift = estimate_alignment(clear.observation)
    assert clear.misregistration_um == (30.0, -20.0)
    assert shift.applied and np.hypot(shift.dy_um - 30, shift.dx_um + 20) < 6.0
    assert shift.score_there > shift.score_here + 0.05


def test_align_image_undoes_the_misregistration(clear):
    true = Alignment(30.0, -20.0, 0.0, 0.0, True)
    straight = simulate(
        910_000, size_um=1400.0, n_genes=16, augment=False, depth=(2.0, 40.0), misregistration_um=(0.0, 0.0)
    )
    restored = align_image(clear.observation, true)
    margin = (slice(None), slice(20, -20), slice(20, -20))  # what comes from beyond the border is lost
    np.testing.assert_array_equal(restored.he[margin], straight.observation.he[margin])
    assert restored.counts is clear.observation.counts and restored.measurement is clear.observation.measurement
    left = estimate_alignment(align_image(clear.observation, estimate_alignment(clear.observation)))
    assert not left.applied or np.hypot(left.dy_um, left.dx_um) < 6.0


def test_half_a_pixel_averages_neighbours(clear):
    obs = clear.observation
    px_um = obs.grid.bin_um / obs.he_per_bin
    moved = align_image(obs, Alignment(0.0, 0.5 * px_um, 0.0, 0.0, True)).he.astype(float)
    between = (obs.he[:, :, :-1].astype(float) + obs.he[:, :, 1:]) / 2
    assert np.abs(moved[:, :, :-1] - between).max() <= 0.5
    assert moved.shape == obs.he.shape


def test_no_shift_returns_the_observation_itself(clear):
    assert align_image(clear.observation, Alignment(0.0, 0.0, 0.2, 0.2, False)) is clear.observation


def test_what_is_right_is_not_moved():
    drawn = [phantom(i) for i in range(12)]
    shifts = [estimate_alignment(p.observation) for p in drawn]
    assert {p.clarity for p in drawn} == {"blank", "partial", "clear"}
    moved = [np.hypot(s.dy_um, s.dx_um) for s in shifts]
    assert max(moved) <= 20.0 and sum(um > 0 for um in moved) <= 2


def test_shifts_that_are_applied_are_right_and_most_are_applied():
    rng = np.random.default_rng(0)
    errors, partial = [], []
    for i in range(12):
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(30, 60)
        p = phantom(i, (length * np.sin(angle), length * np.cos(angle)))
        found = estimate_alignment(p.observation)
        if found.dy_um or found.dx_um:
            errors.append(error_um(found, p))
        elif found.applied:  # a field alone takes up a part of a shift that is not clear
            partial.append(error_um(found, p) / length)
    assert len(errors) >= 11 and np.mean(errors) < 8.0 and max(errors) < 25.0
    assert max(partial, default=0.0) < 0.8


def test_the_same_section_gives_the_same_shift_bit_for_bit(clear):
    assert estimate_alignment(clear.observation) == estimate_alignment(clear.observation)


def test_no_shift_is_longer_than_asked(clear):
    for max_um in (5.0, 20.0, 36.0):
        shift = estimate_alignment(clear.observation, max_um=max_um)
        assert np.hypot(shift.dy_um, shift.dx_um) <= max_um + 1e-9


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_constant_image_gives_no_shift(clear, value):
    obs = replace(clear.observation, he=np.full_like(clear.observation.he, value))
    shift = estimate_alignment(obs)
    assert (shift.dy_um, shift.dx_um, shift.applied) == (0.0, 0.0, False)
    assert shift.score_here == shift.score_there and abs(shift.score_here) < 0.05


def test_constant_counts_give_no_shift(clear):
    obs = replace(clear.observation, counts=np.zeros_like(clear.observation.counts))
    assert estimate_alignment(obs) == Alignment(0.0, 0.0, 0.0, 0.0, False, n_spots=len(obs.spots))


@pytest.mark.parametrize("n", [1, 2, 39])
def test_few_spots_give_no_shift(clear, n):
    assert estimate_alignment(clear.observation.subset_spots(np.arange(n))) == Alignment(
        0.0, 0.0, 0.0, 0.0, False, n_spots=n
    )


@pytest.mark.parametrize("n_genes", [1, 3])
def test_few_genes_are_finite(clear, n_genes):
    obs = clear.observation
    shift = estimate_alignment(replace(obs, counts=obs.counts[:, :n_genes], genes=obs.genes[:n_genes]))
    assert np.isfinite([shift.dy_um, shift.dx_um, shift.score_here, shift.score_there]).all()


@pytest.mark.parametrize("max_um", [0.0, -1.0, np.nan, np.inf])
def test_a_bad_length_is_named(clear, max_um):
    with pytest.raises(ValueError, match=f"`max_um` needs a positive length in µm, but is {max_um}"):
        estimate_alignment(clear.observation, max_um=max_um)


def test_moved_footprints_pool_what_lies_under_them(clear):
    measurement = clear.observation.measurement
    maps = np.random.default_rng(0).standard_normal((3, *measurement.shape)).astype(np.float32)
    pooled = Pooled(measurement, maps)
    np.testing.assert_allclose(pooled((0, 0)), pool(maps, measurement), atol=1e-6)
    # Footprints at p + (2, -3) see what a map moved by (-2, 3) shows at p; spots near the border see it repeated.
    padded = np.pad(maps, ((0, 0), (3, 3), (3, 3)), mode="edge")
    moved = padded[:, 5 : 5 + maps.shape[1], : maps.shape[2]]
    np.testing.assert_allclose(pooled((2, -3)), pool(moved, measurement), atol=1e-6)


def test_footprints_moved_by_fractions_are_between_and_slopes_are_those_of_a_ramp(clear):
    measurement = clear.observation.measurement
    ny, nx = measurement.shape
    y, x = np.mgrid[:ny, :nx].astype(np.float32)
    pooled = Pooled(measurement, np.stack([y, x, 0.5 * y - x]))
    middle = ((measurement.centres > 12) & (measurement.centres < min(ny, nx) - 12)).all(1)
    moved = np.random.default_rng(0).uniform(-5, 5, (len(measurement), 2))
    values, slopes = pooled.with_slopes(moved)
    expected = pooled((0, 0)) + np.c_[moved, moved @ [0.5, -1.0]]
    np.testing.assert_allclose(values[middle], expected[middle], atol=1e-3)
    np.testing.assert_allclose(slopes[0][middle], np.tile([1, 0, 0.5], (middle.sum(), 1)), atol=1e-3)
    np.testing.assert_allclose(slopes[1][middle], np.tile([0, 1, -1], (middle.sum(), 1)), atol=1e-3)


def test_fractions_blur_as_much_as_whole_bins():
    """Else every move by a fraction would smooth the features, and look better than it is."""
    at = np.arange(-1, 2)
    for fraction in (-0.5, -0.2, 0.0, 0.35):
        weights = splines(np.array([[fraction, 0.0]]))[0][0, 0]
        assert weights.sum() == pytest.approx(1) and weights @ at == pytest.approx(fraction)
        assert weights @ (at - fraction) ** 2 == pytest.approx(0.25)


@pytest.mark.parametrize("degrees", [2.0, -4.0])
def test_an_imposed_rotation_is_found_with_its_sign(degrees):
    p = rich(rotation_deg=degrees)
    found = estimate_alignment(p.observation)
    assert found.rotation_deg == pytest.approx(degrees, abs=0.5) and found.sigmas[1] > 4.5
    assert error_um(found, p) < 8.0 < 20.0 < error_um(STILL, p)


def test_an_imposed_deformation_is_found_and_not_where_there_is_none():
    p = rich(deformation_um=15.0)
    found = estimate_alignment(p.observation)
    assert found.field is not None and max(map(abs, found.field.dy_um + found.field.dx_um)) <= 30.0
    assert error_um(found, p) < 0.65 * error_um(STILL, p)
    assert not estimate_alignment(rich().observation).applied


def test_of_many_spots_some_tell_translation_and_rotation_and_all_the_field(monkeypatch):
    asked = {"log_likelihood": set(), "step": set()}
    for name, sizes in asked.items():
        plain = getattr(Agreement, name)

        def seen(self, moved_um, *more, plain=plain, sizes=sizes):
            sizes.add(len(moved_um))
            return plain(self, moved_um, *more)

        monkeypatch.setattr(Agreement, name, seen)
    monkeypatch.setattr("hadmst_sc.alignment.register.MAX_WITNESSES", 300)
    p = rich(rotation_deg=3.0)
    found = estimate_alignment(p.observation)
    n_spots = len(p.observation.spots)
    assert n_spots > 400
    assert asked == {"log_likelihood": {300}, "step": {300, n_spots}}
    assert found.rotation_deg == pytest.approx(3.0, abs=0.5) and error_um(found, p) < 8.0


def test_features_through_other_footprints_are_those_of_their_own(clear):
    obs = clear.observation
    he, rows = he_features(obs), np.arange(0, len(obs.spots), 3)
    whole, few = Pooled(obs.measurement, he), obs.measurement.subset(rows)
    whole((1, 0))
    moved = np.random.default_rng(0).uniform(-3, 3, (len(rows), 2))
    np.testing.assert_array_equal(whole.through(few).displaced(moved), Pooled(few, he).displaced(moved))
    np.testing.assert_array_equal(whole.through(few)((1, 0)), whole((1, 0))[rows])


@pytest.mark.parametrize(("side_um", "step_um"), [(6_000, 600), (12_000, 600), (40_000, 2_000)])
def test_control_points_are_no_more_than_twenty_squares_along_a_side(side_um, step_um):
    along = np.arange(0, side_um + 1, 100.0)
    centres_um = np.stack(np.meshgrid(along, along[: len(along) // 2]), -1).reshape(-1, 2)
    field, basis = control_points(centres_um)
    assert field.step_um == step_um
    assert max(field.shape) <= MAX_FIELD_STEPS + 3 and basis.along_y.shape[1] == 2 * np.prod(field.shape)


def test_leave_one_out_errors_equal_an_explicit_leave_one_out():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 4)), rng.standard_normal((50, 2))
    x -= x.mean(0)
    x /= np.sqrt((x**2).sum(1).mean())
    y -= y.mean(0)

    def explicit(ridge: float) -> np.ndarray:
        errors = []
        for i in range(len(x)):
            # The mean is fitted too: a column of ones.
            design = np.c_[np.delete(x, i, 0), np.ones(len(x) - 1)]
            beta = np.linalg.solve(design.T @ design + ridge * np.eye(5), design.T @ np.delete(y, i, 0))
            errors.append(((y[i] - np.r_[x[i], 1.0] @ beta) ** 2).sum())
        return np.array(errors)

    best = min((explicit(ridge) for ridge in RIDGES), key=np.sum)
    np.testing.assert_allclose(loo_errors(x, y), best, rtol=1e-8)


def test_the_true_place_is_the_likeliest(clear):
    obs = clear.observation
    section = Agreement(
        Pooled(obs.measurement, he_features(obs)),
        leading_components(obs),
        obs.measurement.centres * obs.grid.bin_um,
        obs.grid.bin_um,
    )
    n = len(obs.spots)
    along = {um: section.log_likelihood(np.tile([um, -20.0], (n, 1))) for um in (0.0, 20.0, 30.0, 40.0, 60.0)}
    assert max(along, key=along.__getitem__) == 30.0
    assert along[0.0] < along[20.0] and along[60.0] < along[40.0]


@pytest.mark.real
def test_the_mouse_brain_is_in_place_and_a_shift_of_it_is_found(data_dir):
    from hadmst_sc.datasets import load
    from hadmst_sc.io import read_observation

    section = load("visium_mouse_brain", data_dir=data_dir)
    obs = read_observation(section, "visium_mouse_brain_full_image", genes=200, bin_um=20.0)
    started = time.process_time()
    here = estimate_alignment(obs)
    assert time.process_time() - started < 20  # seconds, where a busy machine needs 8
    assert np.hypot(here.dy_um, here.dx_um) < 8.0 and not here.rotation_deg and here.score_here > 0.2
    moved = align_image(
        obs, Alignment(25.0, -45.0, 0.0, 0.0, True)
    )  # the image now shows at p - (25, -45) what was at p
    found = estimate_alignment(moved)
    assert found.applied and np.hypot(found.dy_um + 25, found.dx_um - 45) < 10.0


def test_measurement_is_the_only_source_of_positions(clear):
    """Footprints moved with the image need no shift: the estimate is relative."""
    obs, bins = clear.observation, np.array([3, -2])
    y, x = np.divmod(obs.measurement.matrix.indices, obs.grid.shape[1])
    matrix = obs.measurement.matrix.copy()
    matrix.indices = (np.clip(y + 3, 0, obs.grid.shape[0] - 1) * obs.grid.shape[1] + np.clip(x - 2, 0, None)).astype(
        matrix.indices.dtype
    )
    follows = replace(obs, measurement=Measurement(matrix, obs.grid.shape, obs.measurement.centres + bins))
    shift = estimate_alignment(follows)
    assert np.hypot(shift.dy_um, shift.dx_um) < 6.0


@pytest.mark.parametrize("turn", AFFINES)
def test_the_affine_of_a_turn_puts_every_pixel_where_the_turn_does(turn):
    maps = np.arange(12.0).reshape(1, 3, 4)
    turned = TURNS[turn](maps)
    affine = np.array(ast.literal_eval(AFFINES[turn].format(h=3, w=4)))
    for y, x in np.ndindex(3, 4):
        to_x, to_y, _ = affine @ [x + 0.5, y + 0.5, 1]
        assert turned[0, int(to_y), int(to_x)] == maps[0, y, x]


def test_clockwise_is_as_clocks_turn():
    image = np.array([[[1, 2], [3, 4]]])
    np.testing.assert_array_equal(TURNS["turned by 90° clockwise"](image), [[[3, 1], [4, 2]]])
