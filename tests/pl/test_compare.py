"""Results side by side: one scale, one unit, one frame."""

from __future__ import annotations

import numpy as np
import pytest
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

import hadmst_sc as hd


@pytest.fixture
def two(result):
    """A second result, of three times the counts."""
    for suffix in ("", "_std"):
        image = result[f"superres{suffix}"]
        result[f"other{suffix}"] = Image2DModel.parse(
            np.asarray(image.data) * 3,
            dims=("c", "y", "x"),
            c_coords=list(image.c.values),
            transformations=get_transformation(image, get_all=True),
        )
    result["other_bins"] = result["superres_bins"].copy()
    table = result["superres_table"].copy()
    table.X = table.X * 3
    result["other_table"] = table
    return result


def test_spots_and_results_share_one_scale(two):
    spots, first, second = hd.pl.compare(two, ["superres", "other"], "ramp", vmax_quantile=1.0)[0]
    assert first.images[0].norm is second.images[0].norm is spots.collections[0].norm
    assert first.images[0].norm.vmax == pytest.approx(3 * np.asarray(two["superres"].sel(c="ramp"))[2:-2, 2:-2].max())
    np.testing.assert_allclose(second.images[0].get_array(), 3 * first.images[0].get_array())


def test_titles_are_names_or_those_given(two):
    titles = [ax.get_title() for ax in hd.pl.compare(two, {"network": "superres", "tripled": "other"}, "ramp")[0]]
    assert titles == ["measured spots", "network", "tripled"]
    axes = hd.pl.compare(two, ["superres", "other"], ["ramp", "flat"], spots=False)
    assert axes.shape == (2, 2) and [ax.get_title() for ax in axes[0]] == ["superres", "other"]


def test_counts_of_larger_bins_are_per_bin_of_the_first(two):
    two["other_table"].uns["hadmst_sc"] = two["other_table"].uns["hadmst_sc"] | {"bin_um": 20.0}
    first, second = hd.pl.compare(two, ["superres", "other"], "ramp", spots=False)[0]
    np.testing.assert_allclose(second.images[0].get_array(), 3 / 4 * first.images[0].get_array())
    assert second.images[0].get_extent() == [0, 480, 360, 0]


@pytest.mark.parametrize(
    ("keys", "genes", "error", "match"),
    [
        ([], None, ValueError, "`keys` needs the name of at least one result"),
        (["superres", "third"], None, KeyError, "key_added='third'"),
        (["superres"], "EPCAM", KeyError, "`genes` needs names that were super-resolved"),
    ],
)
def test_bad_arguments_are_named(two, keys, genes, error, match):
    with pytest.raises(error, match=match):
        hd.pl.compare(two, keys, genes)


def test_results_of_different_images_are_refused(two):
    two["another"] = two["he"].copy()
    two["other_table"].uns["hadmst_sc"] = two["other_table"].uns["hadmst_sc"] | {"image_key": "another"}
    with pytest.raises(ValueError, match=r"made from 'he' and \['another'\]"):
        hd.pl.compare(two, ["superres", "other"])


def test_labels_below_neighbouring_maps_do_not_overlap(two):
    for key in ("superres_table", "other_table"):
        two[key].var = two[key].var.assign(reliability=0.88, image_helps=True, finest_um=155.0)
    _, first, second = hd.pl.compare(two, ["superres", "other"], "ramp")[0]
    first.figure.canvas.draw()
    one, other = (ax.xaxis.label.get_window_extent() for ax in (first, second))
    assert one.x1 < other.x0
