"""A result stays usable after what users do next, on the right places; or says in one message what is missing."""

from __future__ import annotations

import copy
import re

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scanpy as sc
import spatialdata as sd
import squidpy as sq
from shapely import Point
from spatialdata.transformations import get_transformation

import hadmst_sc as hd

IMAGE = "phantom_full_image"
GENES = ["g0", "g1", "$\\frac{$"]


def solved_section(seed: int, model: str | None = "default") -> sd.SpatialData:
    sdata = hd.datasets.phantom(seed, n_genes=3, size_um=700.0, depth=(5.0, 40.0))
    sdata["table"].var_names = GENES
    hd.tl.superresolve(sdata, IMAGE, bin_um=20.0, model=model, gate=False, align=True, show_progress_bar=False)
    return sdata


@pytest.fixture(scope="module")
def reference():
    """Do not change it."""
    sdata = solved_section(3)
    hd.tl.quantiles(sdata)
    return sdata


@pytest.fixture
def solved(reference):
    return copy.deepcopy(reference)


def concatenated(sdata):
    other = copy.deepcopy(sdata)
    return sd.concatenate({"a": sdata, "b": other}), "superres-b"


def concatenated_on_one_system(sdata):
    other = copy.deepcopy(sdata)
    return sd.concatenate({"a": sdata, "b": other}, merge_coordinate_systems_on_name=True), "superres-a"


def cropped(sdata):
    box = {"min_coordinate": [90, 55], "max_coordinate": [251, 233], "target_coordinate_system": "phantom"}
    return sd.bounding_box_query(sdata, axes=("x", "y"), **box), "superres"


def cropped_with_the_whole_table(sdata):
    return sdata.query.bounding_box(
        axes=("x", "y"),
        min_coordinate=[90, 55],
        max_coordinate=[251, 233],
        target_coordinate_system="phantom",
        filter_table=False,
    ), "superres"


def renamed(sdata):
    for elements, old, new in ((sdata.images, "superres", "mine"), (sdata.images, "superres_std", "spread")):
        elements[new] = elements.pop(old)
    sdata.tables["bins"] = sdata.tables.pop("superres_table")
    return sdata, "mine"


def on_another_system(sdata):
    sdata.rename_coordinate_systems({"phantom": "phantom of today"})
    return sdata, "superres"


def cut_by_a_polygon(sdata):
    shape = Point(160, 140).buffer(90)
    return sd.polygon_query(sdata, shape, target_coordinate_system="phantom"), "superres"


def normalised(sdata):
    sc.pp.normalize_total(sdata["superres_table"], target_sum=1e4)
    sc.pp.log1p(sdata["superres_table"])
    return sdata, "superres"


def with_few_rows_and_genes(sdata):
    table = sdata["superres_table"]
    sdata.tables["superres_table"] = table[table.obs["measured"].to_numpy(), ["g1", "g0"]].copy()
    return sdata, "superres"


def beside_a_copy_of_its_table(sdata):
    sdata["counts"] = sdata["superres_table"].copy()
    return normalised(sdata)


CHANGES = [
    copy.deepcopy,
    concatenated,
    concatenated_on_one_system,
    cropped,
    cropped_with_the_whole_table,
    cut_by_a_polygon,
    renamed,
    on_another_system,
    normalised,
    with_few_rows_and_genes,
    beside_a_copy_of_its_table,
]


def changed(change, sdata):
    found = change(sdata)
    return found if isinstance(found, tuple) else (found, "superres")


@pytest.fixture(params=CHANGES, ids=lambda change: change.__name__)
def after(request, solved):
    return changed(request.param, solved)


def table_of(sdata, key):
    return sdata.tables[next(name for name in ("bins", key.replace("superres", "superres_table")) if name in sdata)]


def places(table):
    return table.obsm["spatial"]


def test_the_summary_tells_the_same(after, reference):
    sdata, key = after
    facts, first = hd.tl.summary(sdata, key_added=key).facts, hd.tl.summary(reference).facts
    assert {name: facts[name] for name in ("H&E", "model", "intervals")} == {
        name: first[name] for name in ("H&E", "model", "intervals")
    }


def test_quantiles_are_those_of_the_expected_counts(after, reference):
    sdata, key = after
    table, before = table_of(sdata, key), reference["superres_table"]
    table.layers.pop("q0.95", None)
    hd.tl.quantiles(sdata, key_added=key)
    rows = before.obs["bin_id"].searchsorted(table.obs["bin_id"])
    expected = before[rows, table.var_names].layers["q0.95"]
    found = table.layers["q0.95"]
    known = np.isfinite(found).all(1)
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-6)
    assert known.all() or known.sum() > 100  # a table that was not cut holds bins whose place is gone


def test_squares_lie_on_the_places_of_the_table(after):
    sdata, key = after
    squares = sdata[hd.tl.bins_to_shapes(sdata, key_added=key)]
    table = table_of(sdata, key)
    system = next(name for name in get_transformation(squares, get_all=True) if name.startswith("phantom"))
    laid = sd.transform(squares, to_coordinate_system=system)
    rows = table.obs["bin_id"].searchsorted(squares.index)
    expected = places(table)[rows]
    np.testing.assert_allclose(np.c_[laid.geometry.centroid.x, laid.geometry.centroid.y], expected, atol=1e-6)
    assert len(squares) > 100


def test_pictures_show_map_spots_and_he_on_the_same_places(after, reference):
    sdata, key = after
    he, low, high, _ = hd.pl.superresolve(sdata, "g0", key_added=key)[0]
    table, channel = table_of(sdata, key), reference["superres"].sel(c="g0").values
    shown = high.images[0].get_array()
    # A bin of the map is drawn at the place, in µm from the corner, that its row of the table has in the system.
    ids = np.asarray(sdata.labels[table.obs["region"].iloc[0]].data)
    y, x = np.nonzero(ids)
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), ids == 0)
    row, col = np.divmod(ids[y, x] - 1, channel.shape[1])
    np.testing.assert_array_equal(shown[y, x].data, channel[row, col])
    corner_um = 20 * np.array([col[0] - x[0], row[0] - y[0]])
    # Spots: in µm of the whole section their centres are those of the shapes (2.5 µm per pixel).
    shapes = sdata[next(name for name in sdata.shapes if name in ("phantom", f"phantom{key.removeprefix('superres')}"))]
    expected = 2.5 * np.c_[reference["phantom"].geometry.x, reference["phantom"].geometry.y]
    offsets = low.collections[0].get_offsets() + corner_um
    assert len(offsets) == len(shapes)
    assert all(np.abs(expected - one).max(1).min() < 1e-6 for one in offsets)
    # H&E: pixel (0, 0) of the image lies where its transformation says.
    image = he.images[0]
    start = (image.get_transform() - he.transData).transform([[0, 0]])[0] + corner_um
    name = next(n for n in sdata.images if n in (IMAGE, f"{IMAGE}{key.removeprefix('superres')}"))
    maps = get_transformation(sdata[name], get_all=True)
    system = next(n for n in maps if n in ("phantom", "phantom of today", f"phantom{key.removeprefix('superres')}"))
    moved = maps[system].to_affine_matrix(("x", "y"), ("x", "y"))[:2, 2]
    np.testing.assert_allclose(start, 2.5 * moved, atol=1e-6)  # spatialdata's crop may itself be off by a pixel
    plt.close("all")


@pytest.mark.parametrize("change", [concatenated, cropped, renamed, normalised], ids=lambda change: change.__name__)
def test_every_other_picture_is_drawn(change, solved):
    sdata, key = changed(change, solved)
    hd.pl.uncertainty(sdata, GENES[1:], key_added=key)[0, 0].figure.canvas.draw()
    hd.pl.compare(sdata, [key], "g0")[0, 0].figure.canvas.draw()
    hd.pl.reliability(sdata, key_added=key)[0].figure.canvas.draw()
    hd.pl.registration(sdata, key_added=key)[0].figure.canvas.draw()
    table = table_of(sdata, key)
    sq.pl.spatial_scatter(table, color="g0", shape="square")
    sc.pl.spatial(table, color="g0", show=False)
    plt.close("all")


def test_pictures_do_not_depend_on_what_was_done_to_the_table(solved, reference):
    normalised(solved)
    for draw in (hd.pl.superresolve, hd.pl.uncertainty):
        ours, first = (draw(sdata)[:, 2] for sdata in (solved, reference))
        for one, other in zip(ours, first, strict=True):
            assert one.get_ylabel() == other.get_ylabel()
            np.testing.assert_array_equal(one.images[0].get_array(), other.images[0].get_array())
    plt.close("all")


def test_normalised_spots_are_not_drawn_as_counts(solved, reference):
    counts = solved["table"].X.copy()
    sc.pp.normalize_total(solved["table"])
    needs = r"tables/table: needs the counts that the run read.*`(panels=\['he', 'map'\])`.*`(spots=False)`"
    with pytest.raises(ValueError, match=needs) as said:
        hd.pl.superresolve(solved, "g0")
    panels, spots = re.search(needs, str(said.value), re.DOTALL).groups()  # the remedies, as they are printed
    eval(f"hd.pl.superresolve(solved, 'g0', {panels})", {"hd": hd, "solved": solved})
    eval(f"hd.pl.compare(solved, ['superres'], 'g0', {spots})", {"hd": hd, "solved": solved})
    solved["table"].layers["kept"] = counts  # as scanpy's tutorials keep them
    again, first = (hd.pl.superresolve(sdata, "g0", panels=["spots"])[0, 0] for sdata in (solved, reference))
    np.testing.assert_array_equal(again.collections[0].get_array(), first.collections[0].get_array())
    plt.close("all")


def test_a_name_that_fits_two_results_lists_both(solved):
    both, _ = concatenated(solved)
    with pytest.raises(KeyError, match=r"\['superres-a', 'superres-b'\].*Try `key_added='superres-a'`"):
        hd.tl.summary(both, key_added="superres")


def test_tables_that_were_joined_keep_quantiles_and_squares_and_say_that_the_record_is_lost(solved, reference):
    other = copy.deepcopy(solved)
    both = sd.concatenate({"a": solved, "b": other}, concatenate_tables=True)
    for key in ("superres-a", "superres-b"):
        hd.tl.quantiles(both, (0.5,), key_added=key)
        assert len(both[hd.tl.bins_to_shapes(both, key_added=key)]) == reference["superres_table"].n_obs
        with pytest.raises(KeyError, match=r"tables/superres_table: holds several sections.*concatenate_tables=False"):
            hd.tl.summary(both, key_added=key)
    assert np.isfinite(both["superres_table"].layers["q0.5"]).all()


@pytest.mark.parametrize(
    ("gone", "call", "words"),
    [
        ("superres", hd.tl.quantiles, "images/superres: is missing"),
        ("superres", hd.pl.superresolve, "images/superres: is missing"),
        ("superres_std", hd.pl.uncertainty, "needs 'superres_std'"),
        ("superres_bins", hd.tl.quantiles, "labels/superres_bins: is missing"),
        ("superres_bins", hd.tl.bins_to_shapes, "labels/superres_bins: is missing"),
        ("superres_bins", hd.pl.superresolve, "labels/superres_bins: is missing"),
        ("superres_table", hd.tl.summary, r"there is no table 'superres_table'.*Call `hadmst_sc.tl.superresolve"),
        (IMAGE, hd.pl.registration, f"image_key='{IMAGE}'"),
        ("phantom", hd.pl.registration, "shapes_key='phantom'"),
    ],
)
def test_what_is_gone_is_named(solved, gone, call, words):
    del solved[gone]
    with pytest.raises(KeyError, match=words):
        call(solved)


def test_panels_whose_elements_are_gone_are_left_out_unless_asked_for(solved):
    part = solved.subset(["superres", "superres_std", "superres_bins"])
    axes = hd.pl.superresolve(part, "g0")
    assert [ax.get_title() for ax in axes[0]] == ["super-resolved", "standard deviation"]
    for panel, words in (("he", "image_key="), ("spots", "table_key=")):
        with pytest.raises((KeyError, ValueError), match=words):
            hd.pl.superresolve(part, "g0", panels=[panel])
    plt.close("all")


def test_a_filtered_table_still_makes_squares(solved):
    annsel = pytest.importorskip("annsel")
    kept = sd.filter_by_table_query(solved, "superres_table", obs_expr=annsel.col("covered") > 0.9)
    squares = kept[hd.tl.bins_to_shapes(kept)]
    assert 0 < len(squares) == kept["superres_table"].n_obs < solved["superres_table"].n_obs


def test_a_table_matched_to_its_bins_still_makes_squares(solved):
    kept = sd.match_sdata_to_table(solved, table_name="superres_table")
    assert len(kept[hd.tl.bins_to_shapes(kept)]) == solved["superres_table"].n_obs
    with pytest.raises(KeyError, match=r"images/superres(_std)?: is missing"):
        hd.tl.quantiles(kept)


def test_squares_replace_their_own_and_nothing_else(solved):
    name = hd.tl.bins_to_shapes(solved)
    assert hd.tl.bins_to_shapes(solved) == name
    mine = solved["phantom"].copy()
    with pytest.raises(ValueError, match="`shapes_key='phantom'` is taken"):
        hd.tl.bins_to_shapes(solved, shapes_key="phantom")
    assert solved["phantom"].equals(mine)


def test_a_result_survives_the_disk_after_a_crop_and_a_join(solved, tmp_path):
    both, key = concatenated(cropped(solved)[0])
    both.write(tmp_path / "both.zarr")
    again = sd.read_zarr(tmp_path / "both.zarr")
    assert hd.tl.summary(again, key_added=key).facts == hd.tl.summary(both, key_added=key).facts
    ours, theirs = (hd.pl.superresolve(one, "g0", key_added=key)[0, 2].images[0] for one in (again, both))
    np.testing.assert_array_equal(ours.get_array(), theirs.get_array())
    plt.close("all")
