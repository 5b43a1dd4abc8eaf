"""The picture of reliability shows the numbers of the table, best gene first, and says what is missing."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

import hadmst_sc as hd
from hadmst_sc.pl.reliability import DOES_NOT, GUESS, HELPS

VALUES = {
    "reliability": [0.2, 0.9, 0.6],
    "reliability_low": [0.0, 0.8, 0.5],
    "reliability_high": [0.3, 0.95, 0.7],
    "gain_over_interpolation": [0.1, 0.3, -0.02],
    "image_helps": [False, True, False],
    "finest_um": [np.nan, 55.0, 100.0],
}


@pytest.fixture
def reliable(result):
    for name, column in VALUES.items():
        result["superres_table"].var[name] = column
    return result


def test_genes_are_ranked_and_coloured_by_what_supports_them(reliable):
    left, right = hd.pl.reliability(reliable)
    drawn = {to_hex(line.get_color()): line.get_xydata() for line in left.lines if len(line.get_xydata()) == 1}
    assert {c: tuple(xy[0]) for c, xy in drawn.items()} == {HELPS: (1, 0.9), DOES_NOT: (2, 0.6), GUESS: (3, 0.2)}
    assert [text.get_text() for text in right.get_yticklabels()] == ["ramp", "spike", "flat"]
    assert [bar.get_width() for bar in right.patches] == [0.3, -0.02, 0.1]
    assert [text.get_text() for text in left.get_legend().texts] == [
        "the image helps (1)",
        "spots alone do as well (1)",
        "not supported at any scale (1)",
    ]


def test_ticks_count_genes_in_whole_numbers_and_do_not_overlap(reliable):
    left, right = hd.pl.reliability(reliable)
    left.figure.canvas.draw()
    assert [tick % 1 for tick in left.get_xticks()] == [0] * len(left.get_xticks())
    low, high = right.get_xlim()
    shown = [text.get_window_extent() for text in right.get_xticklabels() if low <= text.get_position()[0] <= high]
    assert all(one.x1 < other.x0 for one, other in pairwise(shown))


def test_only_the_best_are_named(reliable):
    axes = hd.pl.reliability(reliable, n_genes=2, axes=plt.subplots(1, 2)[1])
    assert [text.get_text() for text in axes[1].get_yticklabels()] == ["ramp", "spike"]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"key_added": "other"}, KeyError, "there is no table 'other_table'"),
        ({"n_genes": 0}, ValueError, "`n_genes` needs a whole number of at least 1"),
        ({"axes": np.empty(3)}, ValueError, "`axes` needs two Axes, but has 3"),
    ],
)
def test_bad_arguments_are_named(reliable, options, error, match):
    with pytest.raises(error, match=match):
        hd.pl.reliability(reliable, **options)


def test_a_result_without_reliability_says_how_to_get_it(result):
    with pytest.raises(KeyError, match=r"`var` lacks .*tl\.reliability"):
        hd.pl.reliability(result)
