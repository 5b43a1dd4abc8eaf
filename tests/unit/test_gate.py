"""The gate: held-out spots decide, with few of them all genes together, and never from what they were given."""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc.datasets.simulate import simulate
from hadmst_sc.tl._gate import FOLDS_USED, MIN_SPOTS, N_FOLDS, SHARES, decide, fit_gate


@pytest.fixture(scope="module")
def phantom():
    return simulate(920_000, size_um=1200.0, n_genes=6, augment=False, depth=(5.0, 40.0))


def test_the_truth_wins_whichever_side_it_is_on(phantom):
    obs, truth = phantom.observation, phantom.rate
    flat = np.repeat(truth[:, obs.inside].mean(1), obs.grid.n_bins).reshape(truth.shape) * obs.inside
    as_network = fit_gate(obs, lambda _: (flat, truth), 0)
    assert as_network.share.min() >= 0.75 and as_network.gain.max() < 1
    as_closed = fit_gate(obs, lambda _: (truth, flat), 0)
    assert as_closed.share.max() <= 0.25 and as_closed.gain.max() <= 1


def test_spots_that_judge_were_not_given(phantom):
    obs, seen = phantom.observation, []

    def maps_of(given):
        seen.append(set(given.spots))
        return phantom.rate, phantom.rate

    gate = fit_gate(obs, maps_of, 0)
    hidden = [set(obs.spots) - given for given in seen]
    assert len(seen) == FOLDS_USED and not hidden[0] & hidden[1]
    assert gate.n_spots == sum(map(len, hidden)) == pytest.approx(len(obs.spots) * FOLDS_USED / N_FOLDS, abs=2)


def test_few_spots_trust_the_network_unasked(phantom):
    obs = phantom.observation.subset_spots(np.arange(MIN_SPOTS - 1))
    gate = fit_gate(obs, lambda _: pytest.fail("nothing to judge by"), 0)
    assert (gate.share == 1).all() and gate.n_spots == 0


def test_few_spots_follow_all_genes_and_many_their_own():
    errors = np.ones((len(SHARES), 10))
    errors[-1] = 0.8  # the network is better for nearly all ...
    errors[-1, 0] = 1.1  # ... but one gene
    assert decide(errors, 20).share[0] == 1
    assert decide(errors, 5000).share[0] < 1 and decide(errors, 5000).share[1] == 1
