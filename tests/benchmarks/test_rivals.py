"""Laws of the simple rivals: they are what they are called, and none sees what it should not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

SIMPLE = [
    "nearest",
    "linear",
    "cubic",
    "kriging",
    "kriging, log, soft",
    "ridge on H&E",
    "ridge on H&E, log, soft spread",
    "ridge + kriging, soft",
    "GP on H&E + space",
    "gradient boosting + kriging, log, soft",
    "Poisson trees + kriging, soft",
    "extra trees",
    "extra trees + kriging, soft",
    "stack of three, soft",
]


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """Fewer trees, for laws that hold however many."""
    from rivals import trees

    monkeypatch.setattr(trees, "N_TREES", 60)


@pytest.mark.parametrize("name", SIMPLE)
def test_even_counts_give_an_even_map(make_section, name):
    from rivals import rival

    obs = make_section(lambda y, x: np.array([2.0 + 0 * y, 0.5 + 0 * y]))
    maps = rival(name)(obs)
    assert maps.shape == (2, 40, 40)
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps[:, obs.inside], [[2.0], [0.5]] * np.ones(obs.inside.sum()), rtol=2e-3)
    assert (maps[:, ~obs.inside] == 0).all()


# log1p and Gamma–Poisson know what one count is; the others have no unit.
@pytest.mark.parametrize("name", [name for name in SIMPLE if "log" not in name and "soft" not in name])
def test_twice_the_counts_give_twice_the_map(make_section, name):
    from rivals import rival

    obs = make_section(lambda y, x: np.array([4 + np.sin(y / 5)]), noise=True)
    twice = rival(name)(replace(obs, counts=obs.counts * 2))
    np.testing.assert_allclose(twice, 2 * rival(name)(obs), rtol=1e-3)


def test_no_map_is_negative_even_of_sparse_counts(make_section):
    from rivals import rival

    obs = make_section(lambda y, x: np.array([0.02 + 0.3 * (y > 35), 0 * y]), noise=True)
    for name in SIMPLE:
        maps = rival(name)(obs)
        assert np.isfinite(maps).all(), name
        assert maps.min() >= 0, name
        assert maps[1].max() == 0, name  # a gene without counts has an empty map


def test_nearest_is_the_rate_of_the_spot_whose_cell_the_bin_is_in(make_section):
    from rivals.interpolation import nearest

    obs = make_section(lambda y, x: np.array([1 + y + 40 * x]))
    rates = (obs.counts / obs.measurement.area[:, None]).reshape(8, 8)
    expected = np.kron(rates, np.ones((5, 5)))
    np.testing.assert_allclose(nearest(obs)[0][obs.inside], expected[obs.inside], rtol=1e-5)


@pytest.mark.parametrize("name", ["linear", "cubic"])
def test_interpolation_reproduces_a_plane_inside_the_hull(make_section, name):
    from rivals import rival

    obs = make_section(lambda y, x: np.array([1 + 0.2 * y + 0.1 * x]))
    y, x = np.indices((40, 40)) + 0.5
    hull = np.s_[3:37, 3:37]
    np.testing.assert_allclose(rival(name)(obs)[0][hull], (1 + 0.2 * y + 0.1 * x)[hull], rtol=1e-4)


def test_kriging_of_a_wave_is_closer_than_the_nearest_spot(make_section):
    from rivals import rival

    obs = make_section(lambda y, x: np.array([3 + 2 * np.sin(y / 6) * np.cos(x / 6)]))
    y, x = np.indices((40, 40)) + 0.5
    truth = 3 + 2 * np.sin(y / 6) * np.cos(x / 6)
    error = {name: np.std((rival(name)(obs)[0] - truth)[obs.inside]) for name in ("kriging", "nearest")}
    assert error["kriging"] < 0.25 * error["nearest"]


def test_ridge_finds_a_gene_that_follows_the_image(make_section):
    from rivals import rival
    from scipy import ndimage

    from hadmst_sc.section.features import he_features

    blank = make_section(lambda y, x: np.array([1 + 0 * y]))
    driver = ndimage.gaussian_filter(he_features(blank)[0], 1)
    obs = make_section(lambda y, x: np.array([6 + driver]))
    found = rival("ridge on H&E")(obs)[0]
    assert np.corrcoef(found[obs.inside], driver[obs.inside])[0, 1] > 0.9
    assert np.corrcoef(rival("kriging")(obs)[0][obs.inside], driver[obs.inside])[0, 1] < 0.8


@pytest.mark.parametrize("terms", ["linear", "space", "both"])
def test_left_out_predictions_are_those_of_a_fit_without_the_spot(make_section, monkeypatch, terms):
    from rivals import gaussian
    from rivals.gaussian import Kernel, Terms, fit
    from rivals.section import Section

    candidates = {"linear": Terms(1, 0, 0), "space": Terms(0, 0, 1, 2.0), "both": Terms(0.3, 0.3, 0.4, 0.8)}
    monkeypatch.setattr(gaussian, "NOISES", (0.3,))
    section = Section.of(make_section(lambda y, x: np.array([5 + y / 10, 5 + 0 * x]), noise=True))
    found = fit(section, [candidates[terms]])
    values, vectors = Kernel(section, [candidates[terms]]).decompose(candidates[terms])
    covariance = vectors * values @ vectors.T
    for spot in (0, 17, 63):
        others = np.arange(64) != spot
        rest = section.rates[others] - section.rates.mean(0)
        solved = np.linalg.solve(covariance[np.ix_(others, others)] + 0.3 * np.eye(63), rest)
        expected = section.rates.mean(0) + covariance[spot, others] @ solved
        np.testing.assert_allclose(found.held_out[spot], expected, rtol=1e-4)


def test_random_features_need_no_luck(make_section):
    from rivals import rival

    obs = make_section(lambda y, x: np.array([4 + np.sin(y / 5)]), noise=True)
    first, second = (rival("GP on H&E + space")(obs) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_log_link_keeps_the_sum_over_the_spots_left_out(make_section):
    from rivals.gaussian import kriging
    from rivals.section import Section, in_log

    section = Section.of(make_section(lambda y, x: np.array([1 + y / 5, 0.1 + 0 * y]), noise=True))
    found = in_log(section, kriging)
    np.testing.assert_allclose(found.held_out.sum(0), section.rates.sum(0), rtol=1e-6)


def test_soft_consistency_brings_spot_sums_to_the_counts_where_k_is_small(make_section):
    from rivals.section import Fit, Section, soft

    obs = make_section(lambda y, x: np.array([400 * np.exp(np.sin(y) + np.cos(2 * x))]))
    section = Section.of(obs)
    flat = Fit(np.ones((obs.inside.sum(), 1)), np.ones((64, 1)))
    sums = section.matrix @ (soft(section, flat) * section.mean)
    before = np.abs(section.matrix @ (flat.bins * section.mean) / obs.counts - 1).mean()
    assert np.abs(sums / obs.counts - 1).mean() < 0.25 * before  # bins half under a spot keep half of their error


def test_gamma_shape_is_that_of_the_draws():
    from rivals.section import gamma_shape

    rng = np.random.default_rng(0)
    expected = np.full((200_000, 2), 8.0)
    counts = rng.poisson(expected * rng.gamma([2.0, 5.0], [0.5, 0.2], expected.shape))
    np.testing.assert_allclose(gamma_shape(counts, expected), [2.0, 5.0], rtol=0.03)
    assert gamma_shape(rng.poisson(expected), expected).min() > 200  # Poisson has no spread of its own


def test_a_stack_is_its_best_member_where_that_is_right_and_the_other_is_noise(make_section):
    from rivals.section import Fit, Section
    from rivals.stack import stack

    section = Section.of(make_section(lambda y, x: np.array([5 + y / 10, 5 + np.sin(x / 4)]), noise=True))
    rng = np.random.default_rng(0)
    right = Fit(rng.uniform(0.5, 2, (len(section.bins_um), 2)), section.rates)
    noise = Fit(rng.uniform(0.5, 2, right.bins.shape), rng.uniform(0.5, 2, section.rates.shape))
    found = stack([lambda _: noise, lambda _: right])(section)
    np.testing.assert_allclose(found.held_out, right.held_out, rtol=1e-6)
    np.testing.assert_allclose(found.bins, right.bins, rtol=1e-6)


def test_kriging_of_what_is_left_makes_up_for_a_regression_that_sees_nothing(make_section):
    from rivals.gaussian import and_kriging, kriging
    from rivals.section import Fit, Section

    section = Section.of(make_section(lambda y, x: np.array([5 + y / 10]), noise=True))
    blind = and_kriging(lambda one: Fit(np.ones((len(one.bins_um), 1)), np.ones_like(one.rates)))
    for found, alone in zip(blind(section), kriging(section), strict=True):
        np.testing.assert_allclose(found, alone, rtol=1e-3)


def test_a_shared_regression_is_the_same_and_is_fitted_once_per_run(make_section, tmp_path, monkeypatch):
    import joblib
    from rivals import section as sections
    from rivals.section import Fit, Section

    monkeypatch.setattr(sections, "_memory", joblib.Memory(tmp_path, verbose=0))
    monkeypatch.setattr(sections, "saved_seconds", 0.0)
    calls, now = [], [0.0]
    monkeypatch.setattr(sections.time, "perf_counter", lambda: now[0])

    def slow(section):
        calls.append(len(section.rates))
        now[0] += 100.0
        return Fit(np.full((len(section.bins_um), 1), section.rates.sum()), section.rates)

    fitter = sections.shared(slow)
    section = Section.of(make_section(lambda y, x: np.array([5 + y / 10]), noise=True))
    first, second = fitter(section), fitter(section)
    assert calls == [64]
    np.testing.assert_array_equal(first.bins, second.bins)
    fitter(replace(section, rates=section.rates + 1))  # other rates, as after a logarithm, are another fit
    assert len(calls) == 2
    assert sections.saved_seconds == 100.0  # of the second call; the first and the third took them


def test_unknown_rivals_are_refused_and_the_known_are_named():
    from rivals import rival

    for name in ("krigging", "kriging, logarithmic", "zero, soft"):
        with pytest.raises(KeyError, match=r"is no rival. Known: \[.*zero.*kriging.*stack of three"):
            rival(name)
