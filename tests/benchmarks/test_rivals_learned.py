"""Laws of the learned rivals: reproducible, never without an answer, blind to what they are to predict."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from hadmst_sc.phantom.simulate import simulate

FITS = ["nearest neighbours", "gradient boosting", "extra trees", "Poisson trees"]
MAPS = ["joint bilateral", "U-Net", "iStar's head, our features"]


def method(name, how=""):
    """The rival of a name; Poisson trees alone is none, so its fitter is taken."""
    import rivals
    from rivals.trees import poisson_trees

    rivals.FITTERS["Poisson trees"] = poisson_trees
    try:
        return rivals.rival(name + how)
    finally:
        del rivals.FITTERS["Poisson trees"]


def fitter_of(name):
    from rivals import FITTERS
    from rivals.trees import poisson_trees

    return poisson_trees if name == "Poisson trees" else FITTERS[name]


@pytest.fixture(scope="module")
def phantom():
    """Sixty spots on a section of 800 µm; the image tells the cells that the genes of kind "visible" are of."""
    return simulate(
        5, size_um=800.0, bin_um=20.0, n_genes=16, depth=(20.0, 40.0), augment=False, misregistration_um=0.0
    )


@pytest.fixture
def few_steps(monkeypatch):
    """Networks that are trained a little, and fewer trees, for laws that hold however long."""
    head = import_module("rivals.istar_head")  # the package has a function of that name
    for module, name, few in (("unet", "STEPS", 12), ("trees", "N_TREES", 60)):
        monkeypatch.setattr(import_module(f"rivals.{module}"), name, few)
    monkeypatch.setattr(head, "EPOCHS", 3)
    monkeypatch.setattr(head, "STATES", 2)


def two_genes(y, x):
    return np.array([3 + np.sin(y / 5), 0 * y])


def check(obs, maps):
    assert maps.shape == (len(obs.genes), *obs.grid.shape)
    assert maps.dtype == np.float32
    assert np.isfinite(maps).all()
    assert maps.min() >= 0
    assert (maps[:, ~obs.inside] == 0).all()


@pytest.mark.parametrize("name", FITS + MAPS)
def test_twice_the_same(make_section, few_steps, name):
    obs = make_section(two_genes, noise=True)
    first, second = (method(name)(obs) for _ in range(2))
    check(obs, first)
    np.testing.assert_array_equal(first, second)
    assert first[1].max() == 0  # a gene without counts has an empty map


@pytest.mark.parametrize("rule", ["", ", soft", ", soft spread"])
@pytest.mark.parametrize("link", ["", ", log"])
@pytest.mark.parametrize("name", FITS)
def test_regressions_take_every_link_and_rule(make_section, few_steps, name, link, rule):
    obs = make_section(two_genes, noise=True)
    maps = method(name, link + rule)(obs)
    check(obs, maps)
    assert maps[1].max() == 0
    sums = obs.measurement.matrix @ maps[0].ravel()
    np.testing.assert_allclose(sums.sum(), obs.counts[:, 0].sum(), rtol=0.1)


@pytest.mark.parametrize("name", FITS + MAPS)
def test_five_spots_of_one_gene_under_a_grey_image_give_about_their_mean(make_section, few_steps, name):
    obs = make_section(lambda y, x: np.array([2 + 0 * y])).subset_spots(np.array([0, 9, 27, 40, 63]))
    grey = replace(obs, he=np.full_like(obs.he, 200))
    for one in (obs, grey):
        check(one, method(name)(one))
    np.testing.assert_allclose(method(name)(grey)[0, obs.inside], 2.0, rtol=0.05)


@pytest.mark.parametrize("name", FITS + MAPS)
def test_counts_of_nothing_give_maps_of_nothing(make_section, few_steps, name):
    obs = make_section(lambda y, x: np.array([0 * y]))
    assert method(name)(obs).max() == 0


def test_unet_takes_a_grid_of_any_shape(make_section, few_steps):
    obs = make_section(two_genes, noise=True)
    inside = obs.measurement.coverage > 0
    inside[:5] = inside[-6:] = inside[:, 34:] = False  # leaves 29 × 34 bins, and the U-Net halves twice
    kept = np.asarray(obs.measurement.matrix[:, ~inside.ravel()].sum(1)).ravel() == 0
    cut = replace(obs.subset_spots(kept), inside=inside)
    check(cut, method("U-Net")(cut))


@pytest.mark.parametrize("name", FITS + MAPS)
def test_genes_that_the_image_drives_are_found(phantom, monkeypatch, name):
    from hadmst_sc import metrics

    monkeypatch.setattr(import_module("rivals.istar_head"), "STATES", 1)

    obs, truth = phantom.observation, phantom.rate
    driven = np.array([kind == "visible" for kind in phantom.kinds])
    maps = method(name)(obs)
    constant = (obs.counts.sum(0) / obs.measurement.area.sum())[:, None, None] * obs.inside
    assert (metrics.pearson(maps, truth, obs.inside)[driven] > 0.45).all()  # that of the constant map is zero
    errors = (metrics.rmse(one, truth, obs.inside)[driven] for one in (maps, constant))
    assert (next(errors) < 0.85 * next(errors)).all()


@pytest.mark.parametrize("name", FITS)
def test_left_out_follows_the_other_spots_and_never_the_spot_itself(make_section, monkeypatch, name):
    from rivals import boosting, neighbours, trees
    from rivals.section import Section

    # What is chosen among candidates is chosen on all spots, as in the other regressions; here there is one candidate.
    only = {"RANKS": (2,), "TREES": (30,)}
    for module, grids in ((neighbours, {"NEIGHBOURS": (5,)}), (boosting, only), (trees, {"LEAVES": (3,)})):
        for grid, one in grids.items():
            monkeypatch.setattr(module, grid, one)
    # Components of several genes are those of all spots in the trees, which only choose by them: one gene has none.
    genes = slice(1 if "trees" in name else None)
    section = Section.of(make_section(lambda y, x: np.array([5 + y / 10, 5 + np.sin(x / 4)][genes]), noise=True))
    fitter, rtol = fitter_of(name), 0.02 if "trees" in name else 1e-6  # its splits tie, and digits decide
    before = fitter(section).held_out
    for spot in (0, 17, 63):
        own, others = section.rates.copy(), section.rates.copy()
        own[spot] *= 10
        others[np.arange(64) != spot] *= 1.5
        np.testing.assert_allclose(fitter(replace(section, rates=own)).held_out[spot], before[spot], rtol=rtol)
        assert (fitter(replace(section, rates=others)).held_out[spot] > 1.2 * before[spot]).all()


def test_left_out_neighbours_are_those_of_a_fit_without_the_spot(make_section, monkeypatch):
    from rivals import neighbours
    from rivals.section import Section, features

    monkeypatch.setattr(neighbours, "NEIGHBOURS", (1,))
    section = Section.of(make_section(lambda y, x: np.array([5 + y / 10]), noise=True))
    _, spots = features(section)
    apart = ((spots[:, None] - spots) ** 2).sum(2)
    np.fill_diagonal(apart, np.inf)
    expected = section.rates[apart.argmin(1)]
    np.testing.assert_allclose(neighbours.nearest_neighbours(section).held_out, expected)


def test_bilateral_is_a_mean_of_spots_so_it_stays_between_them(make_section):
    obs = make_section(two_genes, noise=True)
    rates = obs.counts[:, 0] / obs.measurement.area
    found = method("joint bilateral")(obs)[0, obs.inside]
    assert rates.min() * 0.999 <= found.min() < found.max() <= rates.max() * 1.001


def test_bilateral_widths_are_those_for_spots_left_out_so_noise_is_averaged(make_section):
    obs = make_section(lambda y, x: np.array([2 + 0 * y]), noise=True)
    rates = obs.counts[:, 0] / obs.measurement.area
    assert method("joint bilateral")(obs)[0, obs.inside].std() < 0.35 * rates.std()
