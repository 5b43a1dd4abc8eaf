"""Laws of the tasks: no leak, no seed twice, known answers; and reports made from their JSON alone."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest


@pytest.mark.parametrize("n_spots", [7, 64, 2698])
def test_folds_are_a_partition_into_equal_parts(n_spots):
    from tasks import folds

    sizes = np.bincount(folds(n_spots), minlength=4)
    assert sizes.sum() == n_spots
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(folds(n_spots), folds(n_spots))


def test_no_method_sees_the_spots_it_is_scored_on(make_section):
    from tasks import holdout

    obs = make_section(lambda y, x: np.array([5 + y / 10]), noise=True)
    seen = []

    def copier(given):
        seen.append(set(given.spots))
        maps = np.zeros((1, 40, 40), np.float32)
        maps[0].flat[:] = given.measurement.matrix.T @ given.counts[:, 0]  # copies what it is given, fills nothing
        return maps

    row = next(holdout({"copier": copier}, "section", obs, 4))
    assert row.scores["pcc"][0] == 0  # so that nothing is left for the spots held out
    held = [set(obs.spots) - given for given in seen]
    assert sorted(spot for spots in held for spot in spots) == sorted(obs.spots)


def test_truth_scores_one_in_the_hold_out_and_nothing_beats_it(make_section):
    from tasks import holdout

    y = np.indices((40, 40))[0] + 0.5
    truth = (4 + 3 * np.sin(y / 5))[None]
    obs = make_section(lambda y, x: truth)
    row = next(holdout({"truth": lambda _: truth.astype(np.float32)}, "section", obs, 4))
    assert row.scores["pcc"][0] == pytest.approx(1, abs=1e-5)
    assert row.scores["rmse"][0] == pytest.approx(0, abs=1e-3)


def test_ceiling_is_what_the_true_mean_scores():
    from tasks import cell_scores, split_half_ceiling

    rng = np.random.default_rng(0)
    mean = rng.gamma(4.0, 10.0, (20_000, 1))
    counts = rng.poisson(mean)
    assert split_half_ceiling(counts)[0] == pytest.approx(
        cell_scores(mean.T, counts.T, np.ones(len(mean), bool))["pcc"][0], abs=0.01
    )


def test_ceiling_of_noise_alone_is_near_zero():
    from tasks import split_half_ceiling

    counts = np.random.default_rng(0).poisson(3.0, (20_000, 5))
    assert split_half_ceiling(counts).max() < 0.2


def test_genes_are_the_most_abundant_of_those_seen_often_enough():
    from tasks import abundant_genes

    counts = np.ones((100, 4)) * [1, 3, 2, 0]
    counts[:4, 3] = 1000.0  # many counts in 4 % of the spots
    np.testing.assert_array_equal(abundant_genes(counts, 2), [1, 2])
    np.testing.assert_array_equal(abundant_genes(counts, 9), [1, 2, 0])


@pytest.mark.parametrize("n", [3, 4, 64, 200])
def test_tertiles_are_thirds_by_depth(n):
    from tasks import tertiles

    depth = np.random.default_rng(0).permutation(n).astype(float)
    third = tertiles(depth)
    assert np.ptp(np.bincount(third, minlength=3)) <= 1
    assert all(depth[third == i].max() < depth[third == i + 1].min() for i in (0, 1))


def test_phantoms_are_never_those_of_training():
    from tasks import phantom_plan

    from hadmst_sc.datasets.simulate import HELD_OUT_STYLES, TRAIN_STYLES

    plan = phantom_plan(20)
    seeds = [seed for _, seed, _ in plan]
    assert min(seeds) >= 900_000
    assert len(set(seeds)) == len(seeds) == 40
    styles = {name: {style for own, _, style in plan if own == name} for name, _, _ in plan}
    assert styles == {"in distribution": set(TRAIN_STYLES), "held-out styles": set(HELD_OUT_STYLES)}


def test_map_scores_have_known_answers():
    from tasks import map_scores

    rng = np.random.default_rng(0)
    rate, inside = rng.gamma(1.0, 2.0, (2, 12, 12)), rng.random((12, 12)) < 0.7
    same = map_scores(rate, rate, inside)
    assert [round(float(same[k].mean()), 9) for k in ("pcc", "rmse", "pcc_rate", "rmse_mean")] == [1, 0, 1, 0]
    half = map_scores(rate / 2, rate, inside)
    np.testing.assert_allclose(half["pcc_rate"], 1, atol=1e-12)  # blind to scale; the others are not
    assert half["rmse_mean"].min() > 0.1
    flat = map_scores(np.full_like(rate, 3.0), rate, inside)
    np.testing.assert_array_equal(flat["pcc"], 0)
    np.testing.assert_allclose(flat["pcc_rate"], 0, atol=1e-12)


def test_page_is_made_from_the_json_alone_and_runs_agree_but_for_times(tmp_path, capsys):
    import quality

    def run(folder):
        quality.main(["phantoms", "--quick", "--methods", "zero", "cubic", "kriging", "--output", str(folder)])
        record = json.loads((folder / "phantoms_quick.json").read_text())
        assert (folder / "phantoms_quick.md").read_text() == quality.render(record) + "\n"
        return record

    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    for record in (first, second):
        record.pop("provenance")
        for result in record["results"]:
            result.pop("seconds")
    assert first == second
    methods = {result["method"] for result in first["results"]}
    assert methods == {"zero", "cubic", "kriging", "true rate"}
    shown = capsys.readouterr().out
    assert re.search(r"true rate +\| 1\.000 ± 0\.000 +\| 0\.000 ± 0\.000", shown)
    assert re.search(r"zero +\| 0\.000 ± 0\.000", shown)


def test_infinite_scores_are_counted_and_not_averaged():
    import quality

    assert quality._cell(np.array([1.0, np.inf, 3.0])) == "2.000 (1 ∞)"
    assert quality._plain(np.array([0.12341, np.inf])) == [0.1234, None]
