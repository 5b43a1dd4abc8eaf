"""Scores have known answers."""

from __future__ import annotations

import numpy as np
import pytest


def test_ceiling_is_what_the_true_mean_scores():
    from scores import of_counts, split_half_ceiling

    rng = np.random.default_rng(0)
    mean = rng.gamma(4.0, 10.0, (20_000, 1))
    counts = rng.poisson(mean)
    assert split_half_ceiling(counts)[0] == pytest.approx(
        of_counts(mean.T, counts.T, np.ones(len(mean), bool))["pcc"][0], abs=0.01
    )


def test_ceiling_of_noise_alone_is_near_zero():
    from scores import split_half_ceiling

    counts = np.random.default_rng(0).poisson(3.0, (20_000, 5))
    assert split_half_ceiling(counts).max() < 0.2


@pytest.mark.parametrize("n", [3, 4, 64, 200])
def test_tertiles_are_thirds_by_depth(n):
    from scores import tertiles

    depth = np.random.default_rng(0).permutation(n).astype(float)
    third = tertiles(depth)
    assert np.ptp(np.bincount(third, minlength=3)) <= 1
    assert all(depth[third == i].max() < depth[third == i + 1].min() for i in (0, 1))


def test_map_scores_have_known_answers():
    from scores import of_rates

    rng = np.random.default_rng(0)
    rate, inside = rng.gamma(1.0, 2.0, (2, 12, 12)), rng.random((12, 12)) < 0.7
    same = of_rates(rate, rate, inside)
    assert [round(float(same[k].mean()), 9) for k in ("pcc", "rmse", "pcc_rate", "rmse_mean")] == [1, 0, 1, 0]
    half = of_rates(rate / 2, rate, inside)
    np.testing.assert_allclose(half["pcc_rate"], 1, atol=1e-12)  # blind to scale; the others are not
    assert half["rmse_mean"].min() > 0.1
    flat = of_rates(np.full_like(rate, 3.0), rate, inside)
    np.testing.assert_array_equal(flat["pcc"], 0)
    np.testing.assert_allclose(flat["pcc_rate"], 0, atol=1e-12)


def test_blocks_sum_bins_and_leave_out_what_does_not_fill_one():
    from scores import in_blocks

    maps = np.arange(2 * 5 * 4, dtype=float).reshape(2, 5, 4)
    blocks = in_blocks(maps, 2)
    assert blocks.shape == (2, 2, 2)
    np.testing.assert_array_equal(blocks[0, 0], [maps[0, :2, :2].sum(), maps[0, :2, 2:].sum()])


def alike(n_genes=4):
    """Places, truth and prediction of a section of 6 × 6 tiles, each of them the same 4 × 4 bins."""
    rng = np.random.default_rng(0)
    tile = rng.poisson(rng.gamma(2.0, 2.0, (n_genes, 4, 4)))
    truth, predicted = (np.tile(one, (1, 6, 6)).reshape(n_genes, -1) for one in (tile, 0.5 * tile + 1.0))
    return np.indices((24, 24)).reshape(2, -1).T, truth, predicted + 0.3 * (truth % 3)


def test_resampled_scores_of_tiles_that_are_alike_are_the_plain_ones():
    from scores import N_RESAMPLED, of_counts, resampled

    places, truth, predicted = alike()
    everywhere = np.ones(len(places), bool)
    for gene in range(len(truth)):
        one = slice(gene, gene + 1)
        plain = of_counts(predicted[one], truth[one], everywhere)
        for name, values in resampled(predicted[one], truth[one], places).items():
            np.testing.assert_allclose(values, np.full(N_RESAMPLED, plain[name][0]), rtol=1e-5, err_msg=name)
    plain = of_counts(predicted, truth, everywhere)
    for name, values in resampled(predicted, truth, places).items():  # of several genes, those are drawn too
        assert values.mean() == pytest.approx(plain[name].mean(), rel=0.05)
        assert plain[name].min() - 1e-6 <= values.min() < values.max() <= plain[name].max() + 1e-6


def test_what_is_resampled_depends_on_places_and_seed_alone():
    from scores import resampled

    rng = np.random.default_rng(0)
    places, truth = rng.uniform(0, 900, (300, 2)), rng.poisson(3.0, (5, 300))
    first, again = (resampled(truth + 1.0, truth, places) for _ in range(2))
    other = resampled(truth + 1.0, truth, places, seed=1)
    for name in ("rmse", "deviance"):
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
        np.testing.assert_allclose(resampled(truth + 1.0, truth, 7 * places + 3)[name], first[name])


def test_resampled_sections_vary_as_much_as_new_ones_do():
    from scores import resampled

    rng = np.random.default_rng(0)
    places = np.indices((24, 24)).reshape(2, -1).T

    def section():
        truth = rng.poisson(rng.gamma(3.0, 1.0, (1, 576)))
        return resampled(np.log1p(truth) + rng.gamma(2.0, 1.0, truth.shape), truth, places)["pcc"]

    drawn = [section() for _ in range(40)]
    between = np.std([one.mean() for one in drawn])
    assert np.mean([one.std() for one in drawn]) == pytest.approx(between, rel=0.35)


@pytest.mark.parametrize("metric", ["rmse", "deviance"])
def test_a_constant_shift_is_a_loss_with_an_interval_of_that_sign(metric):
    from pairs import paired
    from scores import of_counts, resampled

    rng = np.random.default_rng(0)
    places, rate = np.indices((24, 24)).reshape(2, -1).T, rng.gamma(3.0, 1.0, (8, 576))
    truth, everywhere = rng.poisson(rate), np.ones(576, bool)
    plain, drawn = [], []
    for predicted in (rate, rate + 2.0):
        plain.append({"one": of_counts(predicted, truth, everywhere)[metric]})
        drawn.append({"one": resampled(predicted, truth, places)[metric]})
    found = paired(*plain, tuple(drawn))
    assert found.sign == -1 and found.low < found.mean < found.high < 0
    assert paired(*plain[::-1], tuple(drawn[::-1])).sign == 1


def test_a_gene_without_counts_in_some_tiles_breaks_nothing(recwarn):
    from scores import resampled

    places, truth, predicted = alike(3)
    truth[1, (places >= 4).any(1)] = 0  # in one tile of 36: a third of the draws have none of it
    truth[2] = 0
    predicted[2] = 0
    found = resampled(predicted, truth, places)
    assert all(np.isfinite(values).all() for values in found.values())
    assert all(np.isfinite(values).all() for values in resampled(0 * predicted, truth, places).values())
    assert not recwarn.list


def test_a_gene_without_any_counts_is_not_averaged():
    from scores import of_counts, resampled

    places, truth, predicted = alike(2)
    truth[1] = 0
    plain = of_counts(predicted[:1], truth[:1], np.ones(len(places), bool))
    for name, values in resampled(predicted, truth, places).items():
        drawn = values[values != 0]  # zero where chance drew that gene alone
        np.testing.assert_allclose(drawn, plain[name][0], rtol=1e-5)
        assert len(drawn) > 0.6 * len(values)
