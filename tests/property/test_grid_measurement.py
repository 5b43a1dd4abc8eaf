"""Laws of grid and measurement that hold for any size, shift and step."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hadmst_sc.section.grid import Grid, area_weights, windows
from hadmst_sc.section.measurement import degrade, discs, pool, squares

quick = settings(max_examples=60, deadline=None, derandomize=True)
seeds = st.integers(0, 2**32 - 1)
diameters = st.floats(0.05, 8.0)
offsets = st.tuples(st.floats(0, 1), st.floats(0, 1))


@quick
@given(diameters, offsets)
def test_disc_inside_the_grid_has_its_whole_area(diameter, offset):
    measurement = discs([np.array([6.0, 7.0]) + offset], diameter, (14, 15))
    np.testing.assert_allclose(measurement.area, np.pi * diameter**2 / 4, rtol=1e-9)
    assert measurement.matrix.data.max() <= 1


@quick
@given(diameters, offsets)
def test_disc_contains_its_square_and_is_contained_in_it(diameter, offset):
    centre, shape = [np.array([6.0, 7.0]) + offset], (14, 15)
    disc = discs(centre, diameter, shape).matrix.toarray()
    assert (disc <= squares(centre, diameter, shape).matrix.toarray() + 1e-9).all()
    assert (disc >= squares(centre, diameter / np.sqrt(2), shape).matrix.toarray() - 1e-9).all()


@quick
@given(diameters, st.tuples(st.floats(-3, 17), st.floats(-3, 17)))
def test_a_grid_cut_in_two_measures_the_same_area(diameter, centre):
    y, x = centre
    whole = discs([centre], diameter, (14, 15)).area
    parts = discs([centre], diameter, (8, 15)).area + discs([(y - 8, x)], diameter, (6, 15)).area
    np.testing.assert_allclose(whole, parts, atol=1e-9)


@quick
@given(diameters, offsets, st.integers(-4, 4), st.integers(-4, 4))
def test_whole_bin_shift_of_a_disc_shifts_its_footprint(diameter, offset, dy, dx):
    centre = np.array([10.0, 10.0]) + offset
    here, there = (
        discs([c], diameter, (21, 21)).matrix.toarray().reshape(21, 21) for c in (centre, centre + np.array([dy, dx]))
    )
    np.testing.assert_allclose(np.roll(here, (dy, dx), (0, 1)), there, atol=1e-9)


@quick
@given(st.floats(0.3, 4.0), offsets)
def test_squares_tile_the_plane_from_any_origin(edge, offset):
    n = int(np.ceil(9 / edge)) + 2
    lattice = np.indices((n, n)).reshape(2, -1).T * edge + edge / 2
    coverage = squares(lattice - edge * np.array(offset), edge, (9, 9)).coverage
    np.testing.assert_allclose(coverage, 1, atol=1e-9)


@quick
@given(seeds, diameters, st.floats(-5, 5), st.floats(-5, 5))
def test_pool_and_degrade_are_linear(seed, diameter, a, b):
    rng = np.random.default_rng(seed)
    measurement = discs(rng.uniform(0, 9, (5, 2)), diameter, (9, 9))
    u, v = rng.standard_normal((2, 3, 9, 9))
    for operate in (pool, degrade):
        mixed = operate(a * u + b * v, measurement)
        np.testing.assert_allclose(mixed, a * operate(u, measurement) + b * operate(v, measurement), atol=1e-9)


@quick
@given(seeds, diameters)
def test_pooled_values_lie_between_the_extremes(seed, diameter):
    rng = np.random.default_rng(seed)
    measurement = discs(rng.uniform(0.1, 8.9, (5, 2)), diameter, (9, 9))
    values = rng.standard_normal((2, 9, 9))
    pooled = pool(values, measurement)
    low, high = values.min((1, 2)) - 1e-9, values.max((1, 2)) + 1e-9
    assert ((pooled >= low) & (pooled <= high)).all()


@quick
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 5), st.integers(0, 4), st.sampled_from([1, 2, 4, 8]))
def test_windows_keep_every_bin_once_and_stay_aligned(ny, nx, cores, halos, align):
    core, halo = cores * align, halos * align
    kept = np.zeros((ny, nx), int)
    for window in windows((ny, nx), core, halo, align):
        kept[window.write] += 1
        y0, x0, y1, x1 = window.outer
        assert y0 % align == x0 % align == 0
        assert (y1 - y0, x1 - x0) == (core + 2 * halo,) * 2
        read, keep, write = window.read, window.keep, window.write
        for axis in (0, 1):  # a kept bin is the same bin, counted from the outer box or from the array
            assert read[axis].start + keep[axis].start == write[axis].start
            assert keep[axis].stop - keep[axis].start == write[axis].stop - write[axis].start
    assert kept.min() == kept.max() == 1


@quick
@given(st.integers(1, 40), st.floats(0.2, 9.0), st.integers(1, 40))
def test_area_weights_average_a_ramp_exactly(n_in, step, n_out):
    weights = area_weights(n_in, step, n_out)
    np.testing.assert_allclose(np.asarray(weights.sum(1)).ravel(), 1, rtol=1e-12)
    low, high = (np.minimum((np.arange(n_out) + end) * step, n_in) for end in (0, 1))
    # Weights of a partly covered cell are exact for what is constant within cells, so integrate the staircase.
    primitive = np.concatenate([[0], np.cumsum(np.arange(n_in) + 0.5)])
    integral = np.interp(high, np.arange(n_in + 1), primitive) - np.interp(low, np.arange(n_in + 1), primitive)
    length = high - low
    inside = length > 1e-6
    averages = weights @ (np.arange(n_in) + 0.5)
    np.testing.assert_allclose(averages[inside], integral[inside] / length[inside], rtol=1e-6)
    np.testing.assert_array_equal(averages[length <= 1e-9], n_in - 0.5)


@quick
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 8))
def test_averaging_in_two_whole_steps_is_averaging_in_one(a, b, n):
    at_once = area_weights(a * b * n, a * b, n)
    twice = area_weights(b * n, b, n) @ area_weights(a * b * n, a, b * n)
    np.testing.assert_allclose(at_once.toarray(), twice.toarray(), atol=1e-12)


@quick
@given(st.integers(1, 3000), st.integers(1, 3000), st.floats(0.1, 20.0), st.integers(1, 40))
def test_image_of_whole_bins_gets_exactly_those(ny, nx, um_per_px, px_per_bin):
    grid = Grid.over_image((ny * px_per_bin, nx * px_per_bin), um_per_px, px_per_bin * um_per_px)
    assert grid.shape == (ny, nx)


@quick
@given(st.integers(1, 5000), st.floats(0.1, 20.0), st.floats(0.1, 100.0))
def test_grid_covers_the_image_with_less_than_a_bin_to_spare(side, um_per_px, bin_um):
    grid = Grid.over_image((side, side), um_per_px, bin_um)
    edge = grid.bins_to_px([grid.shape])[0, 0]
    assert edge >= side - 1e-5 * grid.px_per_bin
    assert edge - side < grid.px_per_bin * (1 + 1e-9)


@quick
@given(seeds, st.floats(0.1, 20.0), st.floats(0.5, 100.0))
def test_pixels_to_bins_and_back_is_the_identity(seed, um_per_px, bin_um):
    grid = Grid.over_image((500, 700), um_per_px, bin_um)
    points = np.random.default_rng(seed).uniform(-100, 800, (20, 2))
    np.testing.assert_allclose(grid.bins_to_px(grid.px_to_bins(points)), points, rtol=1e-12)
