"""The interval of a difference holds what it should, and respects sections."""

from __future__ import annotations

import numpy as np
import pytest


def test_a_constant_difference_has_no_width():
    from pairs import paired

    first = {"a": np.array([0.5, 0.6, 0.7]), "b": np.array([0.1, 0.2])}
    found = paired(first, {name: values - 0.125 for name, values in first.items()})
    assert (found.mean, found.low, found.high) == pytest.approx((0.125,) * 3)
    assert found.greater == 1 and found.n == 5 and found.sign == 1


def test_order_changes_the_sign_and_equals_have_none():
    from pairs import paired

    rng = np.random.default_rng(0)
    first, second = {"a": rng.normal(0.3, 0.1, 200)}, {"a": rng.normal(0, 0.1, 200)}
    assert paired(first, second).sign == 1 and paired(second, first).sign == -1
    same = paired(first, first)
    assert same.sign == 0 and same.greater == 0.5


def test_nineteen_of_twenty_intervals_hold_the_truth():
    from pairs import paired

    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = paired({"a": rng.normal(0.1, 1, 60)}, {"a": np.zeros(60)})
        held += found.low <= 0.1 <= found.high
    assert 0.90 <= held / 200 <= 0.99


def test_genes_of_few_sections_are_no_independent_samples():
    from pairs import paired

    rng = np.random.default_rng(0)
    sections = {f"s{i}": rng.normal(shift, 0.01, 100) for i, shift in enumerate((-0.2, 0.1, 0.3))}
    zero = {name: np.zeros(100) for name in sections}
    found = paired(sections, zero)
    assert found.low < 0 < found.high  # though 300 genes alone would say otherwise
    alone = paired({"s2": sections["s2"]}, zero)
    assert alone.low > 0


def test_infinite_scores_and_missing_sections_are_left_out():
    from pairs import paired

    found = paired({"a": np.array([1.0, np.inf, 2.0]), "b": np.ones(2)}, {"a": np.array([0.5, np.inf, np.inf])})
    assert found.n == 1 and found.mean == 0.5
    assert paired({"a": np.ones(2)}, {"b": np.ones(2)}) is None
