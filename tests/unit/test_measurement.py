"""Laws of the measurement operator: areas with closed forms, symmetries, sums."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from hadmst_sc.section.measurement import Measurement, degrade, discs, pool, residual, squares

SHAPE = (12, 10)


def footprint(measurement: Measurement, row: int = 0) -> np.ndarray:
    return measurement.matrix[row].toarray().reshape(measurement.shape)


def segment(r: float, d: float) -> float:
    """Area of the disc of radius ``r`` beyond a line at distance ``d`` from its centre."""
    return r**2 * np.arccos(d / r) - d * np.sqrt(r**2 - d**2)


def test_small_disc_in_one_bin_is_pi_r_squared():
    area = footprint(discs([[3.5, 4.5]], 0.8, SHAPE))
    assert area[3, 4] == pytest.approx(np.pi * 0.4**2, abs=1e-13)
    assert np.count_nonzero(area) == 1


def test_disc_on_a_bin_corner_is_four_equal_quarters():
    area = footprint(discs([[3.0, 4.0]], 1.6, SHAPE))
    np.testing.assert_allclose(area[2:4, 3:5], np.pi * 0.8**2 / 4, atol=1e-13)
    assert np.count_nonzero(area) == 4


def test_disc_on_a_bin_edge_is_two_halves():
    area = footprint(discs([[3.0, 4.5]], 0.8, SHAPE))
    np.testing.assert_allclose(area[2:4, 4], np.pi * 0.4**2 / 2, atol=1e-13)
    assert np.count_nonzero(area) == 2


def test_disc_that_overhangs_its_bin_leaves_segments_in_the_neighbours():
    area = footprint(discs([[3.5, 4.5]], 1.2, SHAPE))
    beyond = segment(0.6, 0.5)
    sides = [area[2, 4], area[4, 4], area[3, 3], area[3, 5]]
    np.testing.assert_allclose(sides, beyond, atol=1e-13)
    assert area[3, 4] == pytest.approx(np.pi * 0.6**2 - 4 * beyond, abs=1e-13)
    assert np.count_nonzero(area) == 5


def test_disc_around_a_bin_fills_it_exactly():
    area = footprint(discs([[3.5, 4.5]], 2 * np.sqrt(0.5), SHAPE))  # through the four corners
    assert area[3, 4] == pytest.approx(1, abs=1e-13)
    np.testing.assert_allclose(area[2, 4], (np.pi * 0.5 - 1) / 4, atol=1e-12)


def test_visium_disc_on_10_um_bins_agrees_with_quadrature():
    centre, r = np.array([5.2, 4.9]), 2.75
    t = (np.arange(12 * 400) + 0.5) / 400  # columns of width 1/400, exact height in each bin
    half = np.sqrt(np.maximum(r**2 - (t - centre[1]) ** 2, 0))
    rows = np.arange(12)[:, None]
    height = np.clip(np.minimum(rows + 1, centre[0] + half) - np.maximum(rows, centre[0] - half), 0, None)
    expected = height.reshape(12, 12, 400).mean(2)
    np.testing.assert_allclose(footprint(discs([centre], 2 * r, (12, 12))), expected, atol=2e-4)


@pytest.mark.parametrize(
    ("centre", "share"),
    [((6.0, 5.0), 1.0), ((0.0, 5.0), 0.5), ((6.0, 10.0), 0.5), ((0.0, 0.0), 0.25), ((12.0, 10.0), 0.25)],
)
def test_area_is_the_part_of_the_disc_on_the_grid(centre, share):
    np.testing.assert_allclose(discs([centre], 5.5, SHAPE).area, np.pi * 2.75**2 * share, rtol=1e-12)


def test_spot_off_the_grid_measures_nothing():
    measurement = discs([[-5.0, 5.0], [6.0, 20.0]], 5.5, SHAPE)
    assert measurement.matrix.nnz == 0
    np.testing.assert_array_equal(measurement.area, [0, 0])


@pytest.mark.parametrize("operator", [discs, squares])
def test_moving_spots_by_whole_bins_moves_their_footprints(operator):
    here = footprint(operator([[4.3, 3.6]], 3.7, (12, 12)))
    there = footprint(operator([[6.3, 7.6]], 3.7, (12, 12)))
    np.testing.assert_allclose(np.roll(here, (2, 4), (0, 1)), there, atol=1e-12)


@pytest.mark.parametrize("operator", [discs, squares])
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_footprints_turn_and_mirror_with_the_plane(operator, turns, mirrored):
    y, x = centre = (4.3, 6.9)
    n = 12
    expected = footprint(operator([centre], 4.4, (n, n)))
    if mirrored:
        x, expected = n - x, expected[:, ::-1]
    for _ in range(turns):
        y, x = n - x, y
    found = footprint(operator([(y, x)], 4.4, (n, n)))
    np.testing.assert_allclose(found, np.rot90(expected, turns), atol=1e-12)


def test_square_shares_are_products_of_overlaps():
    area = footprint(squares([[3.25, 4.5]], 1.5, SHAPE))  # 2.5 to 4.0 by 3.75 to 5.25
    np.testing.assert_allclose(area[2:4, 3:6], np.outer([0.5, 1], [0.25, 1, 0.25]), atol=1e-13)
    assert area.sum() == pytest.approx(1.5**2, abs=1e-13)


@pytest.mark.parametrize("edge", [0.5, 0.8, 1.0, 1.5, 2.0, 2.4])
def test_squares_tile_the_plane(edge):
    n = round(12 / edge)
    y, x = (np.indices((n, n)).reshape(2, -1) + 0.5) * edge
    measurement = squares(np.stack([y, x], 1), edge, (12, 12))
    np.testing.assert_allclose(measurement.coverage, 1, atol=1e-12)
    hr = np.random.default_rng(0).random((3, 12, 12))
    np.testing.assert_allclose(degrade(hr, measurement).sum(0), hr.sum((1, 2)), rtol=1e-12)


def test_one_bright_bin_is_counted_by_the_spot_over_it_alone():
    measurement = discs([[3.0, 3.0], [8.0, 3.0], [8.0, 7.0]], 4.0, SHAPE)
    hr = np.zeros((1, *SHAPE))
    hr[0, 7, 6] = 5.0  # wholly under the third disc
    np.testing.assert_allclose(degrade(hr, measurement), [[0], [0], [5.0]], atol=1e-12)


def test_pooling_a_constant_gives_the_constant_even_at_the_border():
    measurement = discs([[6.0, 5.0], [0.2, 5.1], [11.9, 9.8]], 5.5, SHAPE)
    np.testing.assert_allclose(pool(np.full((2, *SHAPE), 3.25), measurement), 3.25, rtol=1e-12)


def test_pooling_a_ramp_over_a_symmetric_footprint_gives_its_centre():
    measurement = discs([[6.0, 5.0], [4.5, 3.5]], 5.5, SHAPE)
    ramps = np.indices(SHAPE) + 0.5
    np.testing.assert_allclose(pool(ramps, measurement), measurement.centres, rtol=1e-12)


def test_maps_keep_their_order_from_genes_first_to_genes_last():
    measurement = squares([[2.5, 2.5], [6.5, 6.5]], 1.0, SHAPE)
    hr = np.arange(3 * 120.0).reshape(3, *SHAPE)
    np.testing.assert_array_equal(degrade(hr, measurement), [hr[:, 2, 2], hr[:, 6, 6]])


def test_residual_is_the_misfit_over_the_count_or_over_one():
    measurement = squares([[2.5, 2.5], [6.5, 6.5], [8.5, 2.5]], 1.0, SHAPE)
    hr = np.zeros((1, *SHAPE))
    hr[0, 2, 2], hr[0, 6, 6], hr[0, 8, 2] = 12.0, 0.25, 3.0  # too much, none expected, too little
    found = residual(hr, np.array([[10.0], [0.0], [4.0]]), measurement)
    np.testing.assert_allclose(found, [[0.2], [0.25], [0.25]], atol=1e-14)


@pytest.mark.parametrize("rows", [np.array([2, 0]), np.array([True, False, True])])
def test_subset_keeps_rows_centres_and_areas_together(rows):
    whole = discs([[3.0, 3.0], [8.0, 3.0], [0.0, 7.0]], 4.0, SHAPE)
    part = whole.subset(rows)
    index = np.flatnonzero(rows) if rows.dtype == bool else rows
    assert len(part) == 2
    np.testing.assert_array_equal(part.centres, whole.centres[index])
    np.testing.assert_array_equal(part.area, whole.area[index])
    np.testing.assert_array_equal(part.matrix.toarray(), whole.matrix.toarray()[index])


@pytest.mark.parametrize(("operator", "name"), [(discs, "diameter"), (squares, "edge")])
@pytest.mark.parametrize("size", [0.0, -1.0, float("nan")])
def test_footprint_without_size_is_refused(operator, name, size):
    with pytest.raises(ValueError, match=f"`{name}` must be positive, but is {size}"):
        operator([[3.0, 3.0]], size, SHAPE)


def test_operator_on_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"shape \(12, 10\), but have \(10, 12\)"):
        degrade(np.zeros((1, 10, 12)), discs([[3.0, 3.0]], 2.0, SHAPE))


@pytest.mark.parametrize(("matrix", "centres"), [((1, 119), (1, 2)), ((2, 120), (1, 2))])
def test_parts_that_do_not_match_are_refused(matrix, centres):
    with pytest.raises(ValueError, match="do not match"):
        Measurement(sparse.csr_matrix(matrix), SHAPE, np.zeros(centres))


@pytest.mark.parametrize("offset", [(0, 0), (2, -1), (-3, 0)])
def test_footprints_moved_by_whole_bins_are_those_of_moved_discs(offset):
    centres = np.array([[10.3, 9.0], [15.0, 14.6]])
    moved = discs(centres, 5.5, (24, 24)).moved(np.tile(np.array(offset, float), (2, 1)))
    expected = discs(centres + offset, 5.5, (24, 24))
    np.testing.assert_allclose(moved.matrix.toarray(), expected.matrix.toarray(), atol=1e-12)
    np.testing.assert_allclose(moved.centres, expected.centres)


def test_footprints_moved_by_parts_of_a_bin_keep_their_area_and_centre():
    measurement = discs(np.array([[10.0, 10.0], [12.0, 4.5]]), 5.5, (24, 24))
    offsets = np.array([[0.3, -1.7], [2.25, 0.5]])
    moved = measurement.moved(offsets)
    np.testing.assert_allclose(moved.area, measurement.area)
    at = np.indices((24, 24)).reshape(2, -1).T + 0.5
    np.testing.assert_allclose(moved.matrix @ at / moved.area[:, None], measurement.centres + offsets)


def test_what_is_moved_off_the_grid_is_lost():
    measurement = discs(np.array([[3.0, 12.0]]), 4.0, (24, 24))
    assert measurement.moved(np.array([[-3.0, 0.0]])).area[0] == pytest.approx(measurement.area[0] / 2)


def test_pitch_and_diameter_are_those_of_the_spots_in_bins():
    centres = np.array([(5.0 * i + 4, 5.0 * j + 4) for i in range(6) for j in range(5)])
    spots = discs(centres, 2.75, (40, 36))
    assert spots.pitch == pytest.approx(5) and spots.diameter == pytest.approx(2.75)


def test_a_crop_has_the_spots_where_they_were():
    spots = discs(np.array([(12.3, 9.6), (20.0, 14.5)]), 3.0, (30, 24))
    box = (slice(8, 26), slice(5, 20))
    part = spots.cropped(box)
    np.testing.assert_allclose(part.centres, spots.centres - [8, 5])
    again = discs(part.centres, 3.0, (18, 15))
    assert abs(part.matrix - again.matrix).max() < 1e-12
