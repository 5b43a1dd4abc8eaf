"""The gate: held-out spots decide for the section, never from what they were given, whatever the order of genes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.measurement import degrade
from hadmst_sc.trust.gate import (
    FOLDS_USED,
    MAX_GENES,
    MIN_SPOTS,
    N_FOLDS,
    SHARES,
    UNKNOWN,
    decide,
    evaluated_genes,
    fit_gate,
    parts,
)


@pytest.fixture(scope="module")
def phantom():
    return simulate(920_000, size_um=1200.0, n_genes=6, augment=False, depth=(5.0, 40.0))


def test_the_truth_wins_whichever_side_it_is_on(phantom):
    obs, truth = phantom.observation, phantom.rate
    flat = np.repeat(truth[:, obs.inside].mean(1), obs.grid.n_bins).reshape(truth.shape) * obs.inside
    (as_network,) = fit_gate(obs, lambda _, genes, box: [flat[genes], truth[genes]])
    assert as_network.share >= 0.75 and as_network.deviance < 1
    (as_closed,) = fit_gate(obs, lambda _, genes, box: [truth[genes], flat[genes]])
    assert as_closed.share <= 0.25 and as_closed.deviance <= 1


def test_spots_that_judge_were_not_given(phantom):
    obs, seen = phantom.observation, []

    def maps_of(given, genes, box):
        seen.append(set(given.spots))
        return [phantom.rate[genes], phantom.rate[genes]]

    (gate,) = fit_gate(obs, maps_of)
    hidden = [set(obs.spots) - given for given in seen]
    assert len(seen) == FOLDS_USED and not hidden[0] & hidden[1]
    assert gate.n_spots == sum(map(len, hidden)) == pytest.approx(len(obs.spots) * FOLDS_USED / N_FOLDS, abs=2)


def test_wide_sections_are_judged_on_parts(phantom, monkeypatch):
    """Each a section of its own: what its spots counted, and of the maps what lies there."""
    monkeypatch.setattr("hadmst_sc.trust.gate.N_PARTS", 2)
    monkeypatch.setattr("hadmst_sc.trust.gate.PART_SPOTS", 30)
    obs, truth, seen = phantom.observation, phantom.rate, []
    assert len(obs.spots) > 2 * 30
    flat = np.repeat(truth[:, obs.inside].mean(1), obs.grid.n_bins).reshape(truth.shape) * obs.inside

    def maps_of(given, genes, box):
        seen.append((set(given.spots), box))
        assert given.grid.shape == given.inside.shape == flat[0][box].shape
        np.testing.assert_array_equal(given.he, obs.he[(slice(None), *_pixels(obs, box))])
        kept = [obs.spots.index(name) for name in given.spots]
        np.testing.assert_allclose(given.measurement.area, obs.measurement.area[kept])
        return [one[(genes, *box)] for one in (flat, truth)]

    (gate,) = fit_gate(obs, maps_of)
    assert gate.share >= 0.75 and gate.deviance < 1  # the truth, as of the whole
    boxes = [box for _, box in seen]
    assert boxes == [box for box in parts(obs) for _ in range(FOLDS_USED)] and boxes[0] != boxes[-1]
    for box in parts(obs):
        of_box = set(obs.cropped(box).spots)
        first, second = (of_box - given for given, there in seen if there == box)
        assert 30 <= len(of_box) < len(obs.spots) and not first & second
    assert gate.n_spots == sum(len(set(obs.cropped(box).spots) - given) for given, box in seen)


def test_a_part_holds_the_spots_that_lie_in_it_whole(phantom):
    obs, box = phantom.observation, (slice(13, 41), slice(8, 50))
    part = obs.cropped(box)
    assert 0 < len(part.spots) < len(obs.spots)
    rows = [obs.spots.index(name) for name in part.spots]
    np.testing.assert_array_equal(part.counts, obs.counts[rows])
    np.testing.assert_allclose(
        degrade(phantom.rate[(slice(None), *box)], part.measurement),
        degrade(phantom.rate, obs.measurement)[rows],
        rtol=1e-5,
    )
    for row in set(range(len(obs.spots))) - set(rows):
        inside = obs.measurement.subset([row]).cropped(box).area
        assert inside < obs.measurement.area[row]
    whole = obs.cropped(tuple(slice(0, side) for side in obs.grid.shape))
    assert whole.spots == obs.spots and (whole.measurement.matrix != obs.measurement.matrix).nnz == 0


def _pixels(obs, box):
    return tuple(slice(part.start * obs.he_per_bin, part.stop * obs.he_per_bin) for part in box)


def test_few_spots_judge_nothing_and_a_warning_says_so(phantom, caplog):
    obs = phantom.observation.subset_spots(np.arange(MIN_SPOTS - 1))
    (gate,) = fit_gate(obs, lambda *_: pytest.fail("nothing to judge by"))
    assert gate.share == UNKNOWN and gate.n_spots == 0
    assert f"{MIN_SPOTS - 1} spots are too few to judge the network" in caplog.text


def test_genes_that_judge_do_not_depend_on_their_order(phantom):
    obs = phantom.observation
    many = replace(obs, counts=np.tile(obs.counts, 10), genes=tuple(f"g{i}" for i in range(60)))
    order = np.random.default_rng(0).permutation(60)
    turned = replace(many, counts=many.counts[:, order], genes=tuple(many.genes[i] for i in order))
    chosen = [many.genes[i] for i in evaluated_genes(many)]
    assert len(chosen) == MAX_GENES == len(set(chosen))
    assert chosen == [turned.genes[i] for i in evaluated_genes(turned)]
    assert len(evaluated_genes(obs)) == 6


def test_several_are_judged_beside_the_same_closed_form(phantom):
    obs, truth = phantom.observation, phantom.rate
    flat = np.repeat(truth[:, obs.inside].mean(1), obs.grid.n_bins).reshape(truth.shape) * obs.inside
    good, useless = fit_gate(obs, lambda _, genes, box: [flat[genes], truth[genes], flat[genes]])
    assert good.deviance < 0.99 and useless.deviance == pytest.approx(1)


def test_every_gene_weighs_alike():
    shares = np.array(SHARES)
    errors = np.repeat((1 + (shares - 0.75) ** 2)[:, None], 10, 1)
    errors[:, 0] = 1e6 * (1 + shares)  # an abundant gene, for which the others' best is wrong
    gate = decide(errors, 100)
    assert 0.6 < gate.share < 0.7


@pytest.mark.parametrize(("best", "low", "high"), [(0.0, 0.0, 0.0), (0.5, 0.3, 0.5), (1.0, 0.6, 1.0)])
def test_the_share_is_drawn_towards_the_closed_form(best, low, high):
    """A parabola with a gain of a tenth: the penalty takes a third of the share, and less where more is gained."""
    shares = np.array(SHARES)[:, None]
    small, large = (decide(1 + gain * ((shares - best) ** 2 - best**2), 100) for gain in (0.1, 10.0))
    assert low <= small.share <= high
    assert small.share <= large.share == pytest.approx(best, abs=0.05)
    assert large.deviance == pytest.approx(1 - 10 * best**2, abs=0.05)


def test_shares_without_a_difference_choose_the_closed_form():
    assert decide(np.ones((len(SHARES), 4)), 100).share == 0
