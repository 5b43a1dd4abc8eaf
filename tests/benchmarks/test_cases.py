"""Laws of the cases: no seed twice, the truth scores best, and a disturbance leaves it alone."""

from __future__ import annotations

import numpy as np
import pytest

from hadmst_sc.section.observation import Prediction

OPTIONS = {"seed": 900_000, "style": "voronoi", "size_um": 640.0, "n_genes": 6}


def prediction(obs, maps):
    return Prediction(obs.grid, obs.genes, maps.astype(np.float32), None, obs.inside, obs.measurement.coverage)


def test_genes_are_the_most_abundant_of_those_seen_often_enough():
    from anndata import AnnData
    from cases.case import abundant
    from scipy import sparse

    counts = np.ones((100, 4)) * [1, 3, 2, 0]
    counts[:4, 3] = 1000.0  # many counts in 4 % of the spots
    for matrix in (counts, sparse.csr_matrix(counts)):
        table = AnnData(matrix)
        table.var_names = list("abcd")
        assert abundant(table, 2) == ["b", "c"]
        assert abundant(table, 9) == ["b", "c", "a"]


def test_phantoms_are_never_those_of_training():
    from cases.phantom import phantom_plan

    from hadmst_sc.phantom.simulate import HELD_OUT_STYLES, TRAIN_STYLES

    plan = phantom_plan(20)
    seeds = [seed for _, seed, _ in plan]
    assert min(seeds) >= 900_000
    assert len(set(seeds)) == len(seeds) == 40
    styles = {name: {style for own, _, style in plan if own == name} for name, _, _ in plan}
    assert styles == {"in distribution": set(TRAIN_STYLES), "held-out styles": set(HELD_OUT_STYLES)}


def test_true_rate_scores_best_on_a_phantom():
    from cases import CASES
    from methods import method

    case = CASES["phantom"](**OPTIONS)
    (truth,) = case.references["true rate"]().values()
    assert truth["pcc"] == pytest.approx(1) and truth["rmse"] == pytest.approx(0, abs=1e-6)
    assert truth["moran"] == pytest.approx(1) and truth["ssim"] == pytest.approx(1)
    np.testing.assert_allclose(truth["resampled"]["pcc"], 1)
    for name in ("zero", "linear", "kriging"):
        (scores,) = case.score([method(name)(case.given[0])]).values()
        assert scores["pcc"].mean() < 1
        assert scores["resampled"]["pcc"].mean() < 1


def test_a_disturbance_reaches_the_methods_and_not_the_truth():
    from cases import CASES
    from cases.case import disturbed

    clean = CASES["phantom"](**OPTIONS)
    thinned = disturbed(clean, "counts_share", 0.25)
    assert thinned.given[0].counts.sum() == pytest.approx(0.25 * clean.given[0].counts.sum(), rel=0.1)
    assert thinned.about() == clean.about()
    ones = [prediction(clean.section, np.ones((6, *clean.section.grid.shape)))]
    for a, b in zip(clean.score(ones).values(), thinned.score(ones).values(), strict=True):
        np.testing.assert_array_equal(a["rmse"], b["rmse"])


def test_domains_of_the_true_rate_are_nearer_the_regions_than_those_of_an_empty_map():
    from cases import CASES

    case = CASES["phantom_domains"](seed=900_000, style="nests", size_um=960.0, n_genes=24)
    (true,) = case.references["true rate"]().values()
    (empty,) = case.score([prediction(case.section, np.zeros((24, *case.section.grid.shape)))]).values()
    assert empty["ari"] == pytest.approx(0, abs=1e-9) and true["ari"] > 0.02
    assert set(case.references) == {"spots", "true rate"}


def shifted(misregistration_um):
    from dataclasses import replace

    from cases import CASES

    options = {"seed": 970_003, "style": "glands", "size_um": 1280.0, "n_genes": 32, "depth": (5.0, 40.0)}
    case = CASES["phantom"](**options, augment=False, misregistration_um=0.0)
    from disturb import shift_image

    return replace(case, given=(shift_image(case.given[0], misregistration_um),))


def test_registration_moves_a_shifted_image_back_and_nothing_else():
    from cases.registered import registered

    there, case = shifted(0.0).given[0], shifted(40.0)
    (moved,) = registered(case, True).given
    (given,) = case.given
    inner = (slice(None), slice(60, -60), slice(60, -60))

    def off(obs):
        return np.abs(obs.he[inner].astype(float) - there.he[inner]).mean()

    assert off(moved) < 0.5 * off(given)
    np.testing.assert_array_equal(moved.counts, given.counts)
    np.testing.assert_array_equal(moved.measurement.centres, given.measurement.centres)
    np.testing.assert_array_equal(moved.inside, given.inside)


def test_registration_by_spots_moves_these_onto_the_image():
    from cases.registered import registered

    case = shifted(40.0)
    (moved,), (given,) = registered(case, "spots").given, case.given
    np.testing.assert_array_equal(moved.he, given.he)
    kept = np.isin(given.spots, moved.spots)
    step = (moved.measurement.centres - given.measurement.centres[kept]) * given.grid.bin_um
    expected = 40.0 * np.array([np.sin(np.pi / 6), np.cos(np.pi / 6)])
    np.testing.assert_allclose(step.mean(0), expected, atol=12.0)


def test_registration_leaves_an_image_in_its_place():
    from cases.registered import registered

    case = shifted(0.0)
    (moved,), (given,) = registered(case, True).given, case.given
    np.testing.assert_array_equal(moved.he, given.he)
    assert registered(case, True).score is case.score
