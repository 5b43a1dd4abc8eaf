"""Errors at spots left out are those of a refit without them, and weights of the H&E stay at the scale of the spots."""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc.regression.additive import (
    HE_SHARES,
    NO_HE,
    RIDGES,
    AdditiveRegression,
    Choice,
    HEDesign,
    Recipe,
    Solution,
    recipes,
)
from hadmst_sc.regression.kriging import CANDIDATES, Kernel, Lattice, SpotPrecision
from hadmst_sc.section.measurement import Measurement, discs

PITCH, DIAMETER = 10.0, 6.0  # bins


def section(n: int = 5, seed: int = 0) -> tuple[Measurement, np.ndarray]:
    """Discs on a square lattice, and three maps of features."""
    centres = np.array([(y, x) for y in range(n) for x in range(n)]) * PITCH + 8
    side = int(n * PITCH + 8)
    maps = np.random.default_rng(seed).standard_normal((3, side, side)).astype(np.float32)
    return discs(centres, DIAMETER, (side, side)), maps


@pytest.fixture
def parts():
    measurement, maps = section()
    design = HEDesign(maps, measurement, np.ones(measurement.shape, bool))
    values = np.random.default_rng(1).standard_normal((len(measurement), 2))
    return measurement, design, values


@pytest.mark.parametrize("shares", [NO_HE, *HE_SHARES])
@pytest.mark.parametrize("kernel", [None, CANDIDATES[1], CANDIDATES[-1]])
def test_errors_left_out_equal_those_of_a_refit_without_the_spot(parts, kernel: Kernel | None, shares):
    measurement, design, values = parts
    spots, ridge = measurement.centres / PITCH, 0.6
    columns = design.at_spots(shares)
    covariance = columns @ columns.T / ridge
    noise = 1.0 if kernel is None else kernel.nugget
    if kernel is not None:
        covariance += kernel(np.linalg.norm(spots[:, None] - spots, axis=-1))
    root = None if kernel is None else SpotPrecision(spots).root(kernel)
    errors = Solution(root, columns, values).errors(ridge)
    for held_out in (0, 7, 24):
        rest = np.arange(len(spots)) != held_out
        solved = np.linalg.solve(covariance[np.ix_(rest, rest)] + noise * np.eye(rest.sum()), values[rest])
        np.testing.assert_allclose(errors[held_out], values[held_out] - covariance[held_out, rest] @ solved, atol=1e-4)


def test_joint_is_never_worse_left_out_than_the_h_and_e_or_space_alone(parts):
    measurement, design, values = parts
    lattice = Lattice(measurement.centres, PITCH, np.ones(measurement.shape, bool))
    (he, space, joint), _ = AdditiveRegression(design, measurement.centres / PITCH, lattice).fit(values)
    assert (joint.error <= np.minimum(he.error, space.error) * (1 + 2e-3)).all()


def test_what_the_h_and_e_makes_linearly_is_found_in_every_bin():
    measurement, maps = section(8)
    design = HEDesign(maps, measurement, np.ones(measurement.shape, bool))
    lattice = Lattice(measurement.centres, PITCH, np.ones(measurement.shape, bool))
    weights = np.array([[0.0], [2.0], [-1.0], [0.5]])
    values = design.at_spots((1.0, 0.0)) @ weights
    choices, maps = AdditiveRegression(design, measurement.centres / PITCH, lattice).fit(values)
    he, (he_maps, _, joint_maps, texture) = choices[0], maps
    truth = design.to_bins(design.expanded((1.0, 0.0), weights))[0]
    assert he.recipe[0].ridge == min(RIDGES)
    assert np.corrcoef(he_maps[0], truth)[0, 1] > 0.999
    assert np.corrcoef(joint_maps[0], truth)[0, 1] > 0.99
    sharp = design.to_bins(design.expanded((1.0, 0.0), weights), smooth=False)[0]
    assert np.corrcoef(texture[0], sharp)[0, 1] > 0.999 and sharp.std() > 2 * truth.std()


def test_texture_finer_than_a_footprint_says_nothing_to_the_regression():
    measurement, _ = section()
    checks = np.indices(measurement.shape).sum(0) % 2 * 2.0 - 1
    slope = np.indices(measurement.shape)[0] / 10
    active, unit = np.ones(measurement.shape, bool), np.array([[0.0], [1.0]])
    designs = (HEDesign(np.stack([one]).astype(np.float32), measurement, active) for one in (slope, slope + checks))
    plain, checked = (design.to_bins(design.expanded((1.0, 0.0), unit))[0] for design in designs)
    inner = np.zeros(measurement.shape, bool)
    inner[6:-6, 6:-6] = True
    np.testing.assert_allclose(plain[inner.ravel()], checked[inner.ravel()], atol=0.02)


@pytest.mark.parametrize("shares", [NO_HE, *HE_SHARES])
def test_maps_do_not_depend_on_how_many_bins_are_made_at_once(parts, shares, monkeypatch):
    _, design, _ = parts
    weights = design.expanded(shares, np.random.default_rng(2).standard_normal((design.at_spots(shares).shape[1], 3)))
    whole = design.to_bins(weights)
    monkeypatch.setattr("hadmst_sc.regression.additive.BINS_AT_ONCE", 97)
    np.testing.assert_allclose(design.to_bins(weights), whole, atol=1e-4)


def test_a_recipe_that_is_not_allowed_is_not_taken():
    values = np.ones((4, 1))
    choice = Choice(values, he=True, space=False)
    choice.offer(values.copy(), Recipe(CANDIDATES[0], NO_HE, 1.0))
    assert choice.recipe == [None]
    choice.offer(values.copy(), Recipe(None, HE_SHARES[0], 1.0))
    assert choice.recipe == [Recipe(None, HE_SHARES[0], 1.0)] and choice.error[0] == 0


def test_recipes_of_both_are_all_pairs_but_nothing_with_nothing():
    both = list(recipes(he=True, space=True))
    assert len(both) == (1 + len(CANDIDATES)) * (1 + len(HE_SHARES)) - 1 and (None, NO_HE) not in both
    assert set(recipes(he=True, space=False)) == {(None, shares) for shares in HE_SHARES}
    assert set(recipes(he=False, space=True)) == {(kernel, NO_HE) for kernel in CANDIDATES}
