"""Square roots of counts and the way back."""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc.roots import MANY, mean_of_counts


@pytest.mark.parametrize("mean", [0.02, 0.3, 1.0, 4.0, MANY - 1, MANY + 1, 300.0])
def test_the_mean_of_drawn_counts_is_found_from_their_roots(mean):
    counts = np.random.default_rng(0).poisson(mean, 400_000)
    assert mean_of_counts(np.sqrt(counts).mean()[None]) == pytest.approx(mean, rel=0.02)


def test_it_rises_from_zero_without_a_step():
    root = np.linspace(0, 12, 20_001)
    means = mean_of_counts(root)
    assert means[0] == 0 and (np.diff(means) > 0).all()
    assert np.diff(means).max() < 2 * 12 * (root[1] - root[0]) + 1e-2
    assert mean_of_counts(root.astype(np.float32)).dtype == np.float32
