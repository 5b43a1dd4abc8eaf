from __future__ import annotations

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.colors import LogNorm, PowerNorm
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

import hadmst_sc as hd

BIN_UM, SHAPE = 10.0, (18, 24)
SPOTS_UM = np.array([[60.0, 50.0], [160.0, 50.0], [110.0, 130.0]])
BINS_PER_SPOT = np.pi * 20**2 / 10**2


def spots_of(ax, kind=EllipseCollection):
    return next(artist for artist in ax.collections if type(artist) is kind)


def test_axes_are_genes_by_panels(result):
    assert hd.pl.superresolve(result, ["ramp", "spike"]).shape == (2, 4)
    assert hd.pl.superresolve(result, "ramp", panels=["map", "he"]).shape == (1, 2)


def test_drawn_map_is_the_channel_inside_the_tissue_and_masked_outside(result):
    image = hd.pl.superresolve(result, "spike")[0, 2].images[0]
    drawn = image.get_array()
    channel = np.asarray(result["superres"].sel(c="spike").data)
    inside = np.asarray(result["superres_bins"].data) > 0
    np.testing.assert_array_equal(drawn.mask, ~inside)
    np.testing.assert_array_equal(drawn.data, channel)
    assert np.unravel_index(drawn.argmax(), SHAPE) == (3, 7)


def test_bins_lie_at_their_micrometres(result):
    axes = hd.pl.superresolve(result, "spike")
    for ax in axes[0, 2:]:
        assert ax.images[0].get_extent() == [0, 24 * BIN_UM, 18 * BIN_UM, 0]
        assert ax.images[0].origin == "upper"


def test_spots_lie_at_their_micrometres_under_a_rotated_system(result):
    drawn = spots_of(hd.pl.superresolve(result, "ramp")[0, 1])
    np.testing.assert_allclose(drawn.get_offsets(), SPOTS_UM, atol=1e-9)
    np.testing.assert_allclose(drawn.get_widths(), 40.0)
    np.testing.assert_allclose(drawn.get_heights(), 40.0)


def test_square_observations_are_drawn_as_their_squares(result_of_squares):
    drawn = spots_of(hd.pl.superresolve(result_of_squares, "ramp")[0, 1], PolyCollection)
    boxes = [path.get_extents() for path in drawn.get_paths()]
    np.testing.assert_allclose([(b.x0 + b.width / 2, b.y0 + b.height / 2) for b in boxes], SPOTS_UM, atol=1e-9)
    np.testing.assert_allclose([(b.width, b.height) for b in boxes], 40.0)
    np.testing.assert_allclose(drawn.get_array(), np.array([8, 0, 2]) / 16, rtol=1e-6)


def test_the_size_passed_to_the_run_wins_over_the_circles(result_with_stated_size):
    drawn = spots_of(hd.pl.superresolve(result_with_stated_size, "ramp")[0, 1])
    np.testing.assert_allclose(drawn.get_widths(), 30.0)
    np.testing.assert_allclose(drawn.get_array(), np.array([8, 0, 2]) / (np.pi * 15**2 / 10**2), rtol=1e-6)


def test_each_spot_shows_its_own_counts_per_bin_although_the_table_is_shuffled(result):
    drawn = spots_of(hd.pl.superresolve(result, "ramp")[0, 1])
    np.testing.assert_allclose(drawn.get_array(), np.array([8, 0, 2]) / BINS_PER_SPOT, rtol=1e-6)


def test_low_and_high_share_one_scale_and_std_has_its_own(result):
    _, low, high, std = hd.pl.superresolve(result, "ramp", vmax_quantile=1.0)[0]
    inside = np.asarray(result["superres_bins"].data) > 0
    top = max(8 / BINS_PER_SPOT, np.asarray(result["superres"].sel(c="ramp").data)[inside].max())
    assert spots_of(low).norm is high.images[0].norm
    assert (high.images[0].norm.vmin, high.images[0].norm.vmax) == pytest.approx((0, top))
    assert std.images[0].norm.vmax == pytest.approx(np.asarray(result["superres_std"].sel(c="ramp"))[inside].max())


def test_given_vmax_is_the_upper_end_of_the_counts(result):
    assert hd.pl.superresolve(result, "ramp", vmax=3.5)[0, 2].images[0].norm.vmax == 3.5


def test_he_covers_the_whole_image_whatever_level_is_drawn(result):
    for figsize in [(0.5, 0.5), (40, 12)]:
        ax = hd.pl.superresolve(result, "ramp", figsize=figsize)[0, 0]
        image = ax.images[0]
        height, width = image.get_array().shape[:2]
        to_um = image.get_transform() - ax.transData
        np.testing.assert_allclose(to_um.transform([[0, 0], [width, height]]), [[0, 0], [240, 180]], atol=1e-9)


def test_he_takes_the_coarsest_adequate_level(result):
    small = hd.pl.superresolve(result, "ramp", panels=["he"], figsize=(0.15, 0.15))[0, 0].images[0]
    large = hd.pl.superresolve(result, "ramp", panels=["he"], figsize=(10, 10))[0, 0].images[0]
    assert small.get_array().shape == (22, 30, 3)
    assert large.get_array().shape == (90, 120, 3)


def test_limits_are_the_tissue_and_two_percent(result):
    margin = 0.02 * 20 * BIN_UM
    for ax in hd.pl.superresolve(result, "ramp")[0]:
        assert ax.get_xlim() == pytest.approx((20 - margin, 220 + margin))
        assert ax.get_ylim() == pytest.approx((160 + margin, 20 - margin))


def test_scale_bar_is_true_to_the_axes(result):
    bar = next(a for a in hd.pl.superresolve(result, "ramp")[0, 0].artists if isinstance(a, AnchoredSizeBar))
    assert bar.size_bar.get_children()[0].get_width() == 50.0
    assert bar.txt_label.get_text() == "50 µm"


def test_outline_runs_between_inside_and_outside(result):
    ax = hd.pl.superresolve(result, "ramp")[0, 2]
    border = np.concatenate([path.vertices for path in ax.collections[0].get_paths()])
    np.testing.assert_allclose([border.min(0), border.max(0)], [[20, 20], [220, 160]], atol=1e-9)
    assert not hd.pl.superresolve(result, "ramp", outline=False)[0, 2].collections


def test_genes_default_to_those_that_vary_most(result):
    axes = hd.pl.superresolve(result)
    assert [row[0].get_ylabel() for row in axes] == ["spike", "ramp", "flat"]


def test_std_is_left_out_by_default_when_no_draws_were_made(result_without_std):
    assert hd.pl.superresolve(result_without_std, "ramp").shape == (1, 3)


def test_given_axes_are_drawn_into(result):
    figure, axes = plt.subplots(1, 2)
    returned = hd.pl.superresolve(result, "ramp", panels=["he", "map"], axes=axes)
    assert returned.shape == (1, 2) and returned[0, 1] is axes[1]
    assert plt.get_fignums() == [figure.number]


def test_all_zero_gene_is_drawn_on_a_scale_of_one(result):
    result["superres"].data[:] = 0
    result.tables["table"].X[:] = 0
    assert hd.pl.superresolve(result, "ramp")[0, 2].images[0].norm.vmax == 1.0


def test_only_the_chosen_channel_is_read(result):
    import dask.array as da

    read: list[int] = []

    def block(block_info=None):
        (g, _), *_ = block_info[None]["array-location"]
        read.append(g)
        return np.ones((1, *SHAPE), np.float32)

    lazy = da.map_blocks(block, chunks=((1, 1, 1), *[(n,) for n in SHAPE]), dtype=np.float32, meta=np.empty((0, 0, 0)))
    result["superres"].data = lazy
    hd.pl.superresolve(result, "ramp", panels=["map"])
    assert set(read) == {1}


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"key_added": "other"}, KeyError, ["key_added='other'", "['superres']", "Try `key_added='superres'`"]),
        (
            {"genes": ["ramp", "EPCAM"]},
            KeyError,
            ["`genes`", "['EPCAM']", "flat", "Pass `genes=['ramp']`"],
        ),
        ({"genes": []}, KeyError, ["`genes`", "empty list"]),
        ({"panels": ["he", "hot"]}, ValueError, ["`panels`", "['hot']", "'spots'"]),
        ({"panels": []}, ValueError, ["`panels`", "none"]),
        ({"image_key": "hires"}, KeyError, ["image_key='hires'", "sdata.images", "'he'"]),
        ({"table_key": "spots"}, KeyError, ["table_key='spots'", "sdata.tables", "'table'"]),
        ({"genes": "ramp", "axes": np.empty(3)}, ValueError, ["`axes`", "(1, 4)", "(3,)", "plt.subplots(1, 4"]),
    ],
)
def test_errors_name_argument_found_and_remedy(result, arguments, error, words):
    with pytest.raises(error) as caught:
        hd.pl.superresolve(result, **arguments)
    message = str(caught.value.args[0])
    assert all(word in message for word in words), message


def test_asking_for_std_without_draws_says_how_to_make_them(result_without_std):
    with pytest.raises(KeyError, match="with_std=False"):
        hd.pl.superresolve(result_without_std, "ramp", panels=["std"])


@pytest.mark.parametrize("degrees", [0, 30])
def test_squares_are_drawn_as_turned_as_they_lie(result_of_squares, degrees):
    turned = result_of_squares["spots"].copy()
    turned["geometry"] = turned.geometry.rotate(degrees)
    turned.attrs.update(result_of_squares["spots"].attrs)
    result_of_squares.shapes["spots"] = turned
    drawn = hd.pl.superresolve(result_of_squares, "ramp", panels=["spots"])[0, 0].collections[0]
    for path, shape in zip(drawn.get_paths(), turned.geometry, strict=True):
        expected = np.array(shape.exterior.coords)[:4] * 2  # µm per pixel
        assert all(np.abs(expected - corner).max(1).min() < 1e-6 for corner in path.vertices[:4])


@pytest.mark.parametrize(
    ("call", "arguments", "named"),
    [
        (hd.pl.superresolve, {"genes": 3, "vmax": float("nan"), "cmap": "nope"}, ["genes", "vmax", "cmap"]),
        (hd.pl.superresolve, {"panels": 3, "image_key": ["a"], "figsize": 3}, ["panels", "image_key", "figsize"]),
        (hd.pl.uncertainty, {"level": "0.9", "vmax_quantile": 2}, ["level", "vmax_quantile"]),
        (hd.pl.reliability, {"n_genes": 2.5}, ["n_genes"]),
        (hd.pl.registration, {"cmap": None}, ["cmap"]),
        (hd.pl.compare, {"keys": 3}, ["keys"]),
        (hd.pl.compare, {"keys": [["superres"]]}, ["keys"]),
        (hd.tl.bins_to_shapes, {"shapes_key": "a/b"}, ["shapes_key"]),
        (hd.tl.bins_to_shapes, {"shapes_key": ""}, ["shapes_key"]),
        (hd.tl.quantiles, {"quantiles": ["a", True, None]}, ["quantiles"]),
    ],
)
def test_every_bad_argument_is_named_at_once_with_what_can_be_passed(result, call, arguments, named):
    with pytest.raises(ValueError) as caught:
        call(result, **arguments)
    for name in named:
        assert f"`{name}` needs" in str(caught.value) and f"`{name}=" in str(caught.value)


def _with_belief(result, finest: float):
    var = result.tables["superres_table"].var
    var["reliability"], var["image_helps"], var["finest_um"] = 0.874, [True, False, True], finest
    return result


def test_below_a_map_stands_how_far_to_believe_it(result):
    axes = hd.pl.superresolve(_with_belief(result, 55.0), ["ramp", "flat"], panels=["spots", "map"])
    assert [row[1].get_xlabel() for row in axes] == [
        "reliability 0.87, supported from 55 µm",
        "reliability 0.87, image helps, supported from 55 µm",
    ]
    assert not any(row[0].get_xlabel() for row in axes)


@pytest.mark.parametrize("missing", [None, np.nan])
def test_help_of_the_image_that_is_unknown_is_not_claimed(result, missing):
    var = _with_belief(result, 55.0).tables["superres_table"].var
    var["image_helps"] = pd.array([True, None, False], dtype="boolean") if missing is None else [1.0, missing, 0.0]
    (panel,) = hd.pl.superresolve(result, "ramp", panels="map")[0]
    assert panel.get_xlabel() == "reliability 0.87, supported from 55 µm"


def test_a_map_without_support_is_pale(result):
    (panel,) = hd.pl.superresolve(_with_belief(result, np.nan), "ramp", panels="map")[0]
    assert panel.get_xlabel() == "reliability 0.87"
    assert [text.get_text() for text in panel.texts] == ["not supported"]
    veil = panel.get_images()[-1]
    assert veil.get_alpha() == 0.6 and (veil.get_array().mask == ~(result["superres_bins"].data.compute() > 0)).all()


def test_spots_of_a_few_pixels_are_drawn_as_wide_as_they_need_to_be_seen(result):
    def drawn_um(width: float) -> float:
        axes = plt.subplots(figsize=(width, width), squeeze=False)[1]
        ((panel,),) = hd.pl.superresolve(result, "ramp", panels="spots", axes=axes)
        return float(panel.collections[0]._widths[0] * 2)

    assert drawn_um(6.0) == pytest.approx(40.0)  # as they are
    assert 40.0 < drawn_um(0.3) < 100.0  # their distance is 94 µm


def test_drawing_warns_of_nothing(result):
    """The comparison of a lazy image with the table did, in every picture of a store."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        hd.pl.superresolve(result)


def test_a_part_is_drawn_with_its_own_limits(result):
    (panel,) = hd.pl.superresolve(result, "ramp", panels="spots", crop=(40.0, 30.0, 100.0, 80.0))[0]
    assert panel.get_xlim() == (40.0, 100.0) and panel.get_ylim() == (80.0, 30.0)
    with pytest.raises(ValueError, match="`crop` needs"):
        hd.pl.superresolve(result, "ramp", crop=(100.0, 30.0, 40.0, 80.0))


def test_a_scale_of_matplotlib_gets_its_open_ends_from_each_gene(result):
    given = LogNorm(vmin=0.01)
    axes = hd.pl.superresolve(result, ["ramp", "spike"], panels=["spots", "map"], norm=given)
    ramp, spike = (row[1].images[0].norm for row in axes)
    assert type(ramp) is type(spike) is LogNorm and (ramp.vmin, spike.vmin) == (0.01, 0.01)
    assert spots_of(axes[0, 0]).norm is ramp and ramp.vmax != spike.vmax
    assert given.vmax is None  # the caller's own is not changed
    closed = hd.pl.superresolve(result, "ramp", norm=PowerNorm(0.5, 0, 3))[0, 2].images[0].norm
    assert (closed.vmin, closed.vmax) == (0, 3)


def test_vmax_ends_a_scale_that_has_none(result):
    norm = hd.pl.superresolve(result, "ramp", norm=PowerNorm(0.5), vmax=7.0)[0, 2].images[0].norm
    assert norm.vmax == 7.0


@pytest.mark.parametrize("name", ["map.png", "map.pdf"])
def test_save_writes_the_figure(result, tmp_path, name):
    hd.pl.superresolve(result, "ramp", save=tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1000


def test_a_file_without_the_ending_of_a_picture_is_told_before_anything_is_drawn(result, tmp_path):
    with pytest.raises(ValueError, match=r"`save` needs a file ending in .png.*Pass `save='figure.png'`"):
        hd.pl.superresolve(result, "ramp", save="map.csv")
    assert not plt.get_fignums()
