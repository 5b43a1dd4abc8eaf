"""Bounds, estimate and relative uncertainty of every bin, on the scales that make them comparable."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import hadmst_sc as hd
from hadmst_sc.pl._draw import relative_std
from hadmst_sc.trust.intervals import rate_interval

INSIDE = np.zeros((18, 24), bool)
INSIDE[2:-2, 2:-2] = True


def test_bounds_are_the_ends_of_the_interval_on_the_scale_of_the_estimate(result):
    low, mean, high, relative = (ax.images[0] for ax in hd.pl.uncertainty(result, "ramp", vmax_quantile=1.0)[0])
    channel = np.asarray(result["superres"].sel(c="ramp").data)[INSIDE]
    std = np.asarray(result["superres_std"].sel(c="ramp").data)[INSIDE]
    expected = rate_interval(channel, std)
    np.testing.assert_allclose(low.get_array().compressed(), expected[0])
    np.testing.assert_allclose(high.get_array().compressed(), expected[1])
    assert low.norm is mean.norm is high.norm and mean.norm.vmax == pytest.approx(channel.max())
    np.testing.assert_allclose(relative.get_array().compressed(), np.minimum(std / channel, 2.0), rtol=1e-6)
    assert all((image.get_array().mask == ~INSIDE).all() for image in (low, mean, high))


def test_a_doubtful_spread_is_said_above_the_relative_uncertainty(result):
    provenance = result["superres_table"].uns["hadmst_sc"]
    for coverage, title in ((0.9, "relative uncertainty"), (0.5, "relative uncertainty\n(doubtful)")):
        provenance["calibration"] = {"coverage": coverage, "n_spots": 100}
        assert hd.pl.uncertainty(result, "ramp")[0, 3].get_title() == title


def test_a_bin_of_nothing_has_no_relative_uncertainty(result):
    relative = hd.pl.uncertainty(result, "spike")[0, 3].images[0].get_array()
    assert np.argwhere(~relative.mask).tolist() == [[3, 7]]


def test_relative_uncertainties_of_all_results_are_on_one_scale(result):
    drawn = [row[3].images[0] for row in hd.pl.uncertainty(result, ["ramp", "flat"])]
    assert [(one.norm.vmin, one.norm.vmax) for one in drawn] == [(0.0, 2.0)] * 2


def test_a_smaller_estimate_never_looks_better_known(result):
    """The width of an interval did: the upper bound of a very wide one is the estimate itself."""
    mean = np.geomspace(1e-6, 10, 50)
    assert (np.diff(relative_std(mean, np.sqrt(0.5 * mean))) <= 1e-9).all()


def test_a_narrower_interval_lies_within(result):
    wide, narrow = (hd.pl.uncertainty(result, "ramp", level=level)[0] for level in (0.9, 0.5))
    assert [ax.get_title() for ax in narrow] == ["0.25 quantile", "estimate", "0.75 quantile", "relative uncertainty"]
    assert (wide[0].images[0].get_array() < narrow[0].images[0].get_array()).all()
    assert (wide[2].images[0].get_array() > narrow[2].images[0].get_array()).all()


def test_a_row_for_each_gene_and_given_axes(result):
    figure, axes = plt.subplots(2, 4)
    returned = hd.pl.uncertainty(result, ["ramp", "flat"], axes=axes)
    assert returned[1, 3] is axes[1, 3] and plt.get_fignums() == [figure.number]
    assert [row[0].get_ylabel() for row in returned] == ["ramp", "flat"]


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"level": 90}, ValueError, "`level` needs a number between 0 and 1, but is 90"),
        ({"genes": "EPCAM"}, KeyError, "`genes` needs names that were super-resolved"),
        ({"key_added": "other"}, KeyError, "key_added='other'"),
        ({"genes": "ramp", "axes": np.empty(3)}, ValueError, r"`axes` needs \(genes, panels\) = \(1, 4\)"),
    ],
)
def test_bad_arguments_are_named(result, arguments, error, match):
    with pytest.raises(error, match=match):
        hd.pl.uncertainty(result, **arguments)


def test_a_result_without_draws_says_how_to_make_them(result_without_std):
    with pytest.raises(KeyError, match="with_std=False"):
        hd.pl.uncertainty(result_without_std)
