"""Where the image lies is weighed: known answers, and the stated error holds on phantoms."""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc.alignment import evidence as place
from hadmst_sc.alignment.evidence import (
    USUAL,
    Agreement,
    Pooled,
    Posterior,
    lattice,
    leading_components,
    rotations,
    translations,
)
from hadmst_sc.alignment.record import Alignment
from hadmst_sc.alignment.register import MAX_ERROR_UM, doubt, estimate_alignment
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.features import he_features
from hadmst_sc.section.observation import Observation

NONE = Alignment(0.0, 0.0, 0.0, 0.0, False)


def agreement(obs: Observation) -> Agreement:
    centres_um = obs.measurement.centres * obs.grid.bin_um
    return Agreement(Pooled(obs.measurement, he_features(obs)), leading_components(obs), centres_um, obs.grid.bin_um)


@pytest.fixture(scope="module")
def moved():
    """A section whose image tells much, 30 µm and -20 µm off."""
    return simulate(
        910_000, size_um=1400.0, n_genes=16, augment=False, depth=(2.0, 40.0), misregistration_um=(30.0, -20.0)
    )


@pytest.fixture(scope="module")
def weighed(moved) -> Posterior:
    return translations(agreement(moved.observation), NONE, 60.0)


def test_an_error_is_zero_only_for_what_is_certain():
    certain = Posterior(np.array([[0.0, 0.0], [30.0, 40.0]]), np.array([0.0, 1.0]), np.inf, 0.0)
    assert certain.square_error(np.array([30.0, 40.0])) == 0.0
    assert certain.square_error(np.zeros(2)) == 2500.0


def test_an_error_is_the_mean_over_in_place_and_elsewhere():
    even = Posterior(np.array([[-10.0, 0.0], [10.0, 0.0]]), np.array([0.5, 0.5]), float(np.log(USUAL)), 0.0)
    assert even.log_odds == pytest.approx(0)
    np.testing.assert_array_equal(even.mean, [0.0, 0.0])
    assert even.square_error(np.zeros(2)) == pytest.approx(50.0)  # half of the time 10 µm off
    assert even.square_error(np.array([10.0, 0.0])) == pytest.approx(0.5 * 200 + 0.5 * 100)


def test_evidence_is_the_mean_of_the_likelihoods_by_how_usual_they_are():
    weighed = Posterior(np.array([[1.0]]), np.array([1.0]), float(np.log(5.0)), float(np.log(2.0)))
    assert weighed.log_evidence == pytest.approx(np.log((USUAL * 2.0 + 10.0) / (USUAL + 1)))


def test_a_lattice_is_symmetric_and_within_its_bound():
    for max_um, step in ((5.0, 2.5), (20.0, 5.0), (36.0, 10.0), (60.0, 20.0)):
        places = lattice(max_um, step)
        assert step <= np.hypot(*places.T).max() <= max_um + 1e-6
        assert ((places == 0).all(1)).sum() == 1
        assert {tuple(p) for p in places} == {tuple(-p) for p in places}


def test_an_imposed_translation_is_the_likeliest(weighed):
    assert np.hypot(*(weighed.mean - [30.0, -20.0])) < 6.0
    assert weighed.log_odds > 5 and weighed.share.sum() == pytest.approx(1)
    assert weighed.square_error(weighed.mean) < 10.0**2 < weighed.square_error(np.zeros(2))


def test_between_the_translations_that_are_tried_the_likelihood_is_as_if_all_were(moved, weighed, monkeypatch):
    monkeypatch.setattr(place, "STEP_UM", 5.0)
    monkeypatch.setattr(place, "CLOSER", 1)
    dense = translations(agreement(moved.observation), NONE, 60.0)
    np.testing.assert_array_equal(dense.places, weighed.places)
    np.testing.assert_allclose(weighed.mean, dense.mean, atol=0.5)
    assert weighed.log_odds == pytest.approx(dense.log_odds, abs=0.3)


def test_rotations_are_weighed_around_what_was_found(moved):
    section = agreement(moved.observation)
    right = Alignment(30.0, -20.0, 0.0, 0.0, True, centre_um=tuple(section.centres_um.mean(0)))
    turned = Alignment(30.0, -20.0, 0.0, 0.0, True, rotation_deg=2.0, centre_um=right.centre_um)
    straight, back = rotations(section, right, 1.5), rotations(section, turned, 1.5)
    assert straight.square_error(np.zeros(1)) < back.square_error(np.zeros(1))
    assert back.mean[0] == pytest.approx(-2.0, abs=0.7)


def test_the_stated_error_holds_on_sections_with_much_or_little_evidence():
    stated, true = [], []
    for i in range(12):
        length, angle = (0.0, 20.0, 45.0)[i % 3], 2.4 * i
        imposed = (length * np.sin(angle), length * np.cos(angle))
        drawn = simulate(961_000 + i, size_um=(1000.0, 1400.0)[i % 2], n_genes=24, misregistration_um=imposed)
        obs = drawn.observation
        found = estimate_alignment(obs)
        y, x = obs.measurement.centres.astype(int).T
        left = drawn.displacement_um[:, y, x].T - found.displacement_um(obs.measurement.centres * obs.grid.bin_um)
        stated.append(found.error_um)
        true.append(np.sqrt((left**2).sum(1).mean()))
    stated, true = np.array(stated), np.array(true)
    assert 0.6 < np.sqrt((true**2).mean()) / np.sqrt((stated**2).mean()) < 1.4
    assert np.median(true[stated <= MAX_ERROR_UM]) <= 10.0


def test_few_spots_leave_doubt_and_many_do_not(moved):
    obs = moved.observation
    few = estimate_alignment(obs.subset_spots(np.arange(len(obs.spots)) < 60))
    turns = {"as it is": few.score_there, "turned": -1.0}
    assert few.error_um > MAX_ERROR_UM
    assert f"uncertain by about {few.error_um:.0f} µm" in doubt(turns, few)
    many = estimate_alignment(obs)
    assert many.error_um <= MAX_ERROR_UM and doubt({"as it is": many.score_there, "turned": -1.0}, many) is None
