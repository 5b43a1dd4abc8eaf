"""Samples of the true law cover as they say; narrower and wider ones are told apart."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import sparse

from hadmst_sc.section.observation import Prediction

SHAPE, N_DRAWS, GENES = 4.0, 80, 6  # of the Gamma distribution of the rate about its mean
WAVE = 1.0  # in the mean of eight


def law(rng):
    """Mean of the rate ``(genes, 40, 40)``, which is smooth, and a function that draws rates."""
    y, x = np.indices((40, 40)) + 0.5
    mean = np.array([8 + WAVE * np.sin(y / (4 + g)) * np.cos(x / 5) for g in range(GENES)])
    return mean, lambda: rng.gamma(SHAPE, mean / SHAPE)


def made(case, obs, *, width=1.0):
    """A prediction by the true law, its draws ``width`` times as far from the mean."""
    mean, draw = law(np.random.default_rng(1))
    draws = np.array([mean + width * (draw() - mean) for _ in range(N_DRAWS)]).clip(0)
    prediction = Prediction(obs.grid, obs.genes, draws.mean(0), None, obs.inside, obs.measurement.coverage, draws=draws)
    return case.score([prediction])


@pytest.fixture
def section(make_section):
    obs = make_section(lambda y, x: np.ones((GENES, *y.shape)))
    return obs


@pytest.fixture(params=["rates", "counts"])
def case(request, section, monkeypatch):
    """The case whose truth is one rate of the law, or counts of it."""
    from cases import draws

    rng = np.random.default_rng(0)
    rate = law(rng)[1]()
    if request.param == "rates":
        monkeypatch.setattr(draws, "simulated", lambda *_, **__: SimpleNamespace(observation=section, rate=rate))
        return draws.draws_of_phantom(seed=0, style="", blocks=[1, 2, 4])
    cells = SimpleNamespace(obsm={"spatial": np.array([[0.0, 0.0], [160.0, 160.0]])})
    monkeypatch.setattr(draws, "pseudo_spots", lambda *_: (section, rng.poisson(rate), cells))
    return draws.draws_of_cells(section="", n_genes=GENES, bin_um=20.0, blocks=[1, 2, 4])


def test_samples_of_the_true_law_cover_nine_of_ten_at_every_scale_with_power_one(case, section):
    found = made(case, section)
    assert list(found) == ["20 µm", "40 µm", "80 µm"]
    for scale, of_scale in found.items():
        assert all(np.shape(values) == (GENES,) for values in of_scale.values())
        assert of_scale["covered"].mean() == pytest.approx(0.9, abs=0.03), scale
        assert of_scale["power"].mean() == pytest.approx(1.0, abs=0.15), scale
        assert (of_scale["covered, half as wide"] < of_scale["covered"]).all()
        assert (of_scale["covered, twice as wide"] > of_scale["covered"]).all()
        assert np.isfinite(of_scale["crps"]).all() and of_scale["crps"].min() > 0


@pytest.mark.parametrize(("width", "low", "high"), [(0.5, 0.0, 0.86), (2.0, 0.93, 1.01)])
def test_samples_of_another_width_do_not_cover_as_they_say(case, section, width, low, high):
    for of_scale in made(case, section, width=width).values():
        assert low < of_scale["covered"].mean() < high


def test_power_is_that_of_the_squared_width(case, section):
    for of_scale in made(case, section, width=0.5).values():
        assert of_scale["power"].mean() < 0.6


def test_width_that_follows_the_error_has_rank_and_width_that_does_not_has_none():
    from cases.draws import _rank

    rng = np.random.default_rng(0)
    width = rng.uniform(0.1, 5, (3, 4000))
    error = np.abs(rng.normal(0, width))
    assert _rank(width, error).min() > 0.4
    assert np.abs(_rank(rng.permuted(width, axis=1), error)).max() < 0.06
    np.testing.assert_array_equal(_rank(np.ones((3, 4000)), error), 0)


def test_without_samples_the_sums_are_judged_by_what_regions_say(make_section):
    """The rate is the mean, and every bin errs as the formula says for its own part: blocks share nothing."""
    from cases.draws import _std_of_blocks

    from hadmst_sc.trust.spread import OWN, SHARED, Spread

    obs = make_section(lambda y, x: np.ones((GENES, *y.shape)))
    mean = law(np.random.default_rng(0))[0].astype(np.float32)
    stats = {"dispersion": np.linspace(0.5, 2, GENES)}
    one = Prediction(obs.grid, obs.genes, mean, None, obs.inside, obs.measurement.coverage, stats)
    whole = np.zeros((20, 20), bool)
    whole[3, 4] = whole[7, 1] = True
    found = _std_of_blocks(one, obs, whole, 2)
    y, x = np.indices((2, 2)).reshape(2, -1)
    weights = sparse.csr_array(np.ones((1, 4)))
    spread = Spread(stats["dispersion"], obs.measurement.pitch)
    for column, (row, col) in enumerate(((3, 4), (7, 1))):
        bins = mean[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2].reshape(GENES, 4).T.astype(float)
        expected = spread.of_sums(bins, weights, np.c_[y, x])[0]
        np.testing.assert_allclose(found[:, column], expected)
        assert (found[:, column] > np.sqrt(stats["dispersion"] * OWN * bins.sum(0))).all() and SHARED > 0
