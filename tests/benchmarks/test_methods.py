"""One signature for all: an observation goes in, a prediction of the same genes on the same grid comes out."""

from __future__ import annotations

import numpy as np
import pytest

N_GENES = 18  # more than metagenes


@pytest.fixture(scope="module")
def section(make_section):
    def rates(y: np.ndarray, x: np.ndarray) -> list[np.ndarray]:
        return [4 + np.sin(y / 5 + g) if g % 2 else (1 + x / 20) / (1 + g) for g in range(N_GENES)]

    return make_section(rates, noise=True)


def names():
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import methods
    import peers

    return [name for name in methods.methods() if name not in peers.PEERS]  # those have environments of their own


@pytest.mark.parametrize("name", names())
def test_signature(section, name):
    from methods import methods

    from hadmst_sc.section.observation import Prediction

    before = section.counts.copy(), section.he.copy()
    found = methods()[name](section)
    assert isinstance(found, Prediction)
    assert found.genes == section.genes and found.mean.shape == (N_GENES, 40, 40)
    assert np.isfinite(found.mean).all() and found.mean.min() >= 0
    assert (found.mean[:, ~section.inside] == 0).all()
    np.testing.assert_array_equal(before[0], section.counts)
    np.testing.assert_array_equal(before[1], section.he)


def test_every_switch_of_ours_changes_something(section):
    from methods import OURS, SWITCHES, methods

    ours = methods()[OURS](section).mean
    same = [name for name in SWITCHES if name != OURS and np.array_equal(methods()[name](section).mean, ours)]
    assert set(same) <= {"ours, no alignment", "ours, no gate"}  # where nothing is misplaced, and the gate is open
