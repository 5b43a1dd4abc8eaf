"""The interval of a difference holds what it should: sections where there are three, else parts of one."""

from __future__ import annotations

import numpy as np
import pytest


def sections(*means, width=0.01, n_genes=100):
    rng = np.random.default_rng(0)
    found = {f"s{i}": rng.normal(0, width, n_genes) for i in range(len(means))}
    return {name: values - values.mean() + mean for (name, values), mean in zip(found.items(), means, strict=True)}


def zeros(like):
    return {name: np.zeros_like(values) for name, values in like.items()}


def test_students_interval_of_three_sections_is_that_of_the_table():
    from pairs import paired

    first = sections(1.0, 2.0, 3.0)
    found = paired(first, zeros(first))
    half = 4.302653 / np.sqrt(3)  # t of two degrees of freedom; the standard deviation is one
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2 - half, 2 + half), abs=1e-5)
    assert (found.n_sections, found.n_genes, found.sign, found.over) == (3, 100, 0, "3 sections × 100 genes")


def test_a_constant_difference_has_no_width():
    from pairs import paired

    first = sections(0.1, 0.5, 0.7)
    found = paired(first, {name: values - 0.125 for name, values in first.items()})
    assert (found.mean, found.low, found.high) == pytest.approx((0.125,) * 3)
    assert found.sign == 1


def test_order_changes_the_sign_and_equals_have_none():
    from pairs import paired

    first, second = sections(0.30, 0.31, 0.29), sections(0.1, 0.1, 0.1)
    assert paired(first, second).sign == 1 and paired(second, first).sign == -1
    assert paired(first, first).sign == 0


def test_nineteen_of_twenty_intervals_hold_the_truth():
    from pairs import paired

    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        first = {f"s{i}": np.full(5, rng.normal(0.1, 1)) for i in range(4)}
        found = paired(first, zeros(first))
        held += found.low <= 0.1 <= found.high
    assert 0.92 <= held / 400 <= 0.98


def test_genes_of_few_sections_are_no_independent_samples():
    from pairs import paired

    first = sections(-0.2, 0.1, 0.3)
    found = paired(first, zeros(first))
    assert found.low < 0 < found.high  # though 300 genes alone would say otherwise


@pytest.mark.parametrize("n", [1, 2])
def test_fewer_sections_without_resampled_ones_have_no_interval(n):
    from pairs import paired

    first = sections(*[0.5] * n)
    found = paired(first, zeros(first))
    assert found.mean == pytest.approx(0.5)
    assert np.isnan([found.low, found.high]).all() and found.sign == 0


def test_the_interval_of_one_section_is_that_of_its_resampled_differences():
    from pairs import paired

    first, rng = sections(0.5), np.random.default_rng(0)
    common = rng.normal(0, 10, 1000)  # what both methods suffer alike does not count
    drawn = {"s0": common + np.linspace(0, 1, 1000)}, {"s0": common}
    found = paired(first, zeros(first), drawn)
    assert (found.mean, found.low, found.high) == pytest.approx((0.5, 0.025, 0.975), abs=1e-6)
    assert found.sign == 1 and found.over == "tiles × 100 genes"
    assert paired(first, zeros(first), drawn[::-1]).sign == -1


def test_three_sections_do_not_ask_for_resampled_ones():
    from pairs import paired

    first = sections(1.0, 2.0, 3.0)
    drawn = {name: np.full(10, 99.0) for name in first}, zeros({name: np.zeros(10) for name in first})
    assert paired(first, zeros(first), drawn) == paired(first, zeros(first))


def test_infinite_scores_and_missing_sections_are_left_out():
    from pairs import paired

    found = paired({"a": np.array([1.0, np.inf, 2.0]), "b": np.ones(2)}, {"a": np.array([0.5, np.inf, np.inf])})
    assert found.n_sections == 1 and found.n_genes == 1 and found.mean == 0.5
    assert paired({"a": np.ones(2)}, {"b": np.ones(2)}) is None
