"""Laws of the cases: no leak, no seed twice, and the truth scores best."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.mark.parametrize("n_spots", [7, 64, 2698])
def test_folds_are_a_partition_into_equal_parts(n_spots):
    from cases import folds

    sizes = np.bincount(folds(n_spots), minlength=4)
    assert sizes.sum() == n_spots
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(folds(n_spots), folds(n_spots))


def test_no_method_sees_the_spots_it_is_scored_on(make_section):
    from cases import hold_out

    obs = make_section(lambda y, x: np.array([5 + y / 10]), noise=True)
    case = hold_out(obs)
    held = [set(obs.spots) - set(given.spots) for given in case.given]
    assert sorted(spot for spots in held for spot in spots) == sorted(obs.spots)

    def copies(given):  # what it is given, and nothing elsewhere
        maps = np.zeros((1, 40, 40), np.float32)
        maps[0].flat[:] = given.measurement.matrix.T @ given.counts[:, 0]
        return maps

    found = case.score([copies(given) for given in case.given])
    assert found["spots"]["pcc"][0] == 0  # so that nothing is left for the spots held out


def test_truth_scores_one_in_the_hold_out(make_section):
    from cases import hold_out

    truth = (4 + 3 * np.sin((np.indices((40, 40))[0] + 0.5) / 5))[None]
    case = hold_out(make_section(lambda y, x: truth))
    found = case.score([truth.astype(np.float32)] * 4)["spots"]
    assert found["pcc"][0] == pytest.approx(1, abs=1e-5)
    assert found["rmse"][0] == pytest.approx(0, abs=1e-3)


def test_of_a_panel_only_the_wanted_genes_are_scored_and_described(make_section):
    from cases import hold_out

    obs = make_section(lambda y, x: np.array([5 + y / 10, 3 + x / 10, 1 + 0 * y]), noise=True)
    case = hold_out(obs, n_folds=1, n_scored=2)
    found = case.score([np.ones((3, 40, 40), np.float32)])["spots"]
    assert (
        len(found["pcc"])
        == 2
        == len(case.about()["genes"])
        == len(case.references["split-half ceiling"]()["spots"]["pcc"])
    )
    assert len(case.given[0].genes) == 3


def test_genes_are_the_most_abundant_of_those_seen_often_enough():
    from cases import abundant_genes

    counts = np.ones((100, 4)) * [1, 3, 2, 0]
    counts[:4, 3] = 1000.0  # many counts in 4 % of the spots
    np.testing.assert_array_equal(abundant_genes(counts, 2), [1, 2])
    np.testing.assert_array_equal(abundant_genes(counts, 9), [1, 2, 0])


def test_phantoms_are_never_those_of_training():
    from cases import phantom_plan

    from hadmst_sc.phantom.simulate import HELD_OUT_STYLES, TRAIN_STYLES

    plan = phantom_plan(20)
    seeds = [seed for _, seed, _ in plan]
    assert min(seeds) >= 900_000
    assert len(set(seeds)) == len(seeds) == 40
    styles = {name: {style for own, _, style in plan if own == name} for name, _, _ in plan}
    assert styles == {"in distribution": set(TRAIN_STYLES), "held-out styles": set(HELD_OUT_STYLES)}


def test_true_rate_scores_best_on_a_phantom():
    from cases import build
    from methods import methods

    case = build("phantom", {"seed": 900_000, "style": "voronoi", "size_um": 640.0, "n_genes": 6})
    (truth,) = case.references["true rate"]().values()
    assert truth["pcc"] == pytest.approx(1) and truth["rmse"] == pytest.approx(0, abs=1e-6)
    assert truth["moran"] == pytest.approx(1) and truth["ssim"] == pytest.approx(1)
    for name in ("zero", "cubic", "kriging"):
        (scores,) = case.score([methods()[name](case.given[0]).mean]).values()
        assert scores["pcc"].mean() < 1


def test_a_disturbance_reaches_the_methods_and_not_the_truth():
    from cases import build

    options = {"seed": 900_000, "style": "voronoi", "size_um": 640.0, "n_genes": 6}
    clean, thinned = build("phantom", options), build("phantom", options, ("counts_share", 0.25))
    assert thinned.given[0].counts.sum() == pytest.approx(0.25 * clean.given[0].counts.sum(), rel=0.1)
    maps = [np.ones((6, *clean.section.grid.shape), np.float32)]
    for (a,), (b,) in [(clean.score(maps).values(), thinned.score(maps).values())]:
        np.testing.assert_array_equal(a["rmse"], b["rmse"])


def test_domains_of_the_true_rate_are_nearer_the_regions_than_those_of_an_empty_map():
    from cases import build

    case = build("phantom_domains", {"seed": 900_000, "style": "nests", "size_um": 960.0, "n_genes": 24})
    (true,) = case.references["true rate"]().values()
    (empty,) = case.score([np.zeros((24, *case.section.grid.shape), np.float32)]).values()
    assert empty["ari"] == pytest.approx(0, abs=1e-9) and true["ari"] > 0.02
    assert set(case.references) == {"spots", "true rate"}
