"""Scores have known answers."""

from __future__ import annotations

import numpy as np
import pytest


def test_ceiling_is_what_the_true_mean_scores():
    from scores import of_counts, split_half_ceiling

    rng = np.random.default_rng(0)
    mean = rng.gamma(4.0, 10.0, (20_000, 1))
    counts = rng.poisson(mean)
    assert split_half_ceiling(counts)[0] == pytest.approx(
        of_counts(mean.T, counts.T, np.ones(len(mean), bool))["pcc"][0], abs=0.01
    )


def test_ceiling_of_noise_alone_is_near_zero():
    from scores import split_half_ceiling

    counts = np.random.default_rng(0).poisson(3.0, (20_000, 5))
    assert split_half_ceiling(counts).max() < 0.2


@pytest.mark.parametrize("n", [3, 4, 64, 200])
def test_tertiles_are_thirds_by_depth(n):
    from scores import tertiles

    depth = np.random.default_rng(0).permutation(n).astype(float)
    third = tertiles(depth)
    assert np.ptp(np.bincount(third, minlength=3)) <= 1
    assert all(depth[third == i].max() < depth[third == i + 1].min() for i in (0, 1))


def test_map_scores_have_known_answers():
    from scores import of_rates

    rng = np.random.default_rng(0)
    rate, inside = rng.gamma(1.0, 2.0, (2, 12, 12)), rng.random((12, 12)) < 0.7
    same = of_rates(rate, rate, inside)
    assert [round(float(same[k].mean()), 9) for k in ("pcc", "rmse", "pcc_rate", "rmse_mean")] == [1, 0, 1, 0]
    half = of_rates(rate / 2, rate, inside)
    np.testing.assert_allclose(half["pcc_rate"], 1, atol=1e-12)  # blind to scale; the others are not
    assert half["rmse_mean"].min() > 0.1
    flat = of_rates(np.full_like(rate, 3.0), rate, inside)
    np.testing.assert_array_equal(flat["pcc"], 0)
    np.testing.assert_allclose(flat["pcc_rate"], 0, atol=1e-12)


def test_blocks_sum_bins_and_leave_out_what_does_not_fill_one():
    from scores import in_blocks

    maps = np.arange(2 * 5 * 4, dtype=float).reshape(2, 5, 4)
    blocks = in_blocks(maps, 2)
    assert blocks.shape == (2, 2, 2)
    np.testing.assert_array_equal(blocks[0, 0], [maps[0, :2, :2].sum(), maps[0, :2, 2:].sum()])
