"""Laws of the grid: bins, pixels, windows and area averages, in numbers."""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc.section.grid import Grid, area_weights, windows


@pytest.mark.parametrize(
    ("image_shape", "um_per_px", "bin_um", "expected"),
    [
        ((1000, 500), 0.5, 10.0, (50, 25)),
        ((1001, 500), 0.5, 10.0, (51, 25)),  # one pixel more sticks out: it gets a bin
        ((9, 21), 0.1, 0.3, (3, 7)),  # 0.3 / 0.1 is 2.999…96 in floating point: 9 px would make a fourth bin
        ((7000, 4900), 0.7, 4.9, (1000, 700)),
        ((3, 2), 1.0, 10.0, (1, 1)),  # smaller than a bin is one bin
    ],
)
def test_over_image_covers_the_image_and_gains_no_bin_by_rounding(image_shape, um_per_px, bin_um, expected):
    assert Grid.over_image(image_shape, um_per_px, bin_um).shape == expected


def test_um_per_px_is_that_of_the_image():
    assert Grid.over_image((2000, 1921), 4.275, 20.0).um_per_px == pytest.approx(4.275, rel=1e-12)


def test_pixel_edges_are_bin_edges():
    grid = Grid.over_image((100, 60), 0.5, 10.0)
    np.testing.assert_allclose(grid.px_to_bins([[0, 0], [20, 40], [100, 60]]), [[0, 0], [1, 2], [5, 3]], atol=1e-12)
    np.testing.assert_allclose(grid.bins_to_px([[0.5, 1.5]]), [[10, 30]], atol=1e-12)


def test_centre_of_bin_i_is_i_plus_half_with_x_fastest():
    grid = Grid((2, 3), 10.0, 4.0)
    expected = [[0.5, 0.5], [0.5, 1.5], [0.5, 2.5], [1.5, 0.5], [1.5, 1.5], [1.5, 2.5]]
    np.testing.assert_array_equal(grid.centres(), expected)
    assert grid.n_bins == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 3), 10.0, 4.0), r"`shape` needs at least one bin per axis, but is \(0, 3\)"),
        (((2, 3), 0.0, 4.0), r"must be positive, but are 0.0, 4.0"),
        (((2, 3), 10.0, -1.0), r"must be positive, but are 10.0, -1.0"),
        (((2, 3), float("nan"), 4.0), r"must be positive, but are nan, 4.0"),
    ],
)
def test_impossible_grid_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Grid(*arguments)


def stitch(image: np.ndarray, core: int, halo: int, align: int) -> np.ndarray:
    """Read every window of a padded image and put its core back."""
    far = -np.array(image.shape) % core
    padded = np.pad(image, [(halo, halo + far[0]), (halo, halo + far[1])], constant_values=-1)
    out = np.full_like(image, -2)
    for window in windows(image.shape, core, halo, align):
        ys, xs = window.read
        patch = padded[ys.start + halo : ys.stop + halo, xs.start + halo : xs.stop + halo]
        out[window.write] = patch[window.keep]
    return out


@pytest.mark.parametrize("shape", [(16, 16), (37, 50), (3, 5), (1, 64)])
@pytest.mark.parametrize(("core", "halo", "align"), [(16, 8, 4), (8, 0, 8), (4, 12, 4), (64, 4, 4)])
def test_stitched_windows_are_the_image(shape, core, halo, align):
    image = np.arange(np.prod(shape)).reshape(shape)
    np.testing.assert_array_equal(stitch(image, core, halo, align), image)


def test_every_bin_is_kept_by_exactly_one_window():
    kept = np.zeros((37, 50), int)
    for window in windows(kept.shape, 16, 8, 4):
        kept[window.write] += 1
    assert kept.min() == kept.max() == 1


def test_windows_are_equal_aligned_and_reach_the_halo_past_their_core():
    for window in windows((37, 50), 16, 8, 4):
        y0, x0, y1, x1 = window.outer
        assert (y1 - y0, x1 - x0) == (32, 32)
        assert y0 % 4 == x0 % 4 == 0
        assert (window.inner[0] - y0, window.inner[1] - x0) == (8, 8)
        assert y1 - window.inner[2] >= 8
        assert x1 - window.inner[3] >= 8


def test_windows_within_an_array_read_no_further_and_keep_the_same():
    image = np.arange(37 * 50).reshape(37, 50)
    for window in windows(image.shape, 16, 8, 4):
        ended = window.within(image.shape)
        y0, x0, y1, x1 = ended.outer
        assert (y0, x0) == tuple(np.maximum(window.outer[:2], 0)) and (y1, x1) == tuple(
            np.minimum(window.outer[2:], image.shape)
        )
        np.testing.assert_array_equal(image[ended.read][ended.keep], image[window.write])


@pytest.mark.parametrize(("core", "halo", "align"), [(15, 8, 4), (16, 6, 4), (0, 8, 4)])
def test_misaligned_windows_are_refused(core, halo, align):
    with pytest.raises(ValueError, match=f"multiples of {align}, but are {core} and {halo}"):
        next(windows((32, 32), core, halo, align))


def test_area_weights_with_whole_steps_are_block_means():
    expected = np.arange(12.0).reshape(4, 3).mean(1)
    np.testing.assert_allclose(area_weights(12, 3, 4) @ np.arange(12.0), expected, atol=1e-14)


def test_area_weights_with_step_one_change_nothing():
    np.testing.assert_array_equal(area_weights(7, 1.0, 7).toarray(), np.eye(7))


def test_area_weights_split_a_cell_by_the_length_it_shares():
    expected = [[2 / 3, 1 / 3, 0], [0, 1 / 3, 2 / 3]]
    np.testing.assert_allclose(area_weights(3, 1.5, 2).toarray(), expected, atol=1e-14)


def test_area_weights_finer_than_the_cells_repeat_them():
    np.testing.assert_allclose(area_weights(2, 0.5, 4) @ [3.0, 7.0], [3, 3, 7, 7], atol=1e-14)


def test_interval_that_sticks_out_averages_what_is_there():
    np.testing.assert_allclose(area_weights(5, 2.0, 3) @ np.arange(5.0), [0.5, 2.5, 4.0], atol=1e-14)


def test_interval_beyond_the_input_repeats_the_last_cell():
    np.testing.assert_allclose(area_weights(4, 2.0, 4) @ [1.0, 2, 3, 9], [1.5, 6, 9, 9], atol=1e-14)
