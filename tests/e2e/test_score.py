"""Scores of results against a truth: molecules, cells, bins of another platform and maps, wherever they are."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from anndata import AnnData
from geopandas import GeoDataFrame
from shapely import box
from spatialdata import SpatialData, bounding_box_query, deepcopy
from spatialdata.models import PointsModel, ShapesModel, TableModel
from spatialdata.transformations import Affine, Identity, Scale, set_transformation

import hadmst_sc as hd
from hadmst_sc import metrics
from hadmst_sc.io.result import find_result
from hadmst_sc.metrics.results import _std_of_blocks, whole_blocks

UM_PER_PX, BIN_UM = 2.5, 20.0
HOW = {"bin_um": BIN_UM, "model": None, "show_progress_bar": False}
SCORES = ["pcc", "rmse", "deviance", "ssim", "coverage", "crps"]


@pytest.fixture(scope="module")
def made():
    sdata = hd.datasets.phantom(seed=2, n_genes=4, size_um=800.0)
    hd.tl.superresolve(sdata, "phantom_full_image", **HOW)
    return sdata


@pytest.fixture
def solved(made):
    return deepcopy(made)


def molecules_of(sdata, seed=0):
    """Molecules of the true rates: x and y in pixels, and the gene; and their counts in bins of the result."""
    image = sdata["phantom_truth"]
    counts = np.random.default_rng(seed).poisson(4 * np.asarray(image.data))
    gene, row, column = (np.repeat(index, counts.ravel()) for index in np.indices(counts.shape).reshape(3, -1))
    inner = np.random.default_rng(seed + 1).uniform(0, 1, (2, len(gene)))
    names = np.array([str(one) for one in image.coords["c"].values])
    x, y = ((where + shift) * 10.0 / UM_PER_PX for where, shift in zip((column, row), inner, strict=True))
    frame = pd.DataFrame({"x": x, "y": y, "gene": names[gene]})
    ends = [0.0, counts.shape[1] * 10.0 / UM_PER_PX]  # of the square that was measured: a control probe in each corner
    corners = pd.DataFrame({"x": np.repeat(ends, 2), "y": ends * 2, "gene": "control"})
    frame = pd.concat([frame, corners], ignore_index=True)
    ny, nx = counts.shape[1] // 2, counts.shape[2] // 2
    return frame, xr.DataArray(
        counts.reshape(len(counts), ny, 2, nx, 2).sum((2, 4)).astype(float),
        dims=("c", "y", "x"),
        coords={"c": names},
    )


def points_of(frame, system="phantom", transformation=None, **keys):
    return PointsModel.parse(frame, transformations={system: transformation or Identity()}, **keys)


def test_molecules_are_counted_in_bins_and_scored_as_arrays_are(solved):
    frame, counts = molecules_of(solved)
    solved["transcripts"] = points_of(frame, feature_key="gene")
    found = metrics.score(solved, "transcripts", scale=False)
    genes = [str(one) for one in solved["superres"].coords["c"].values]
    assert found.index.tolist() == genes and (found["factor"] == 1).all() and (found["result"] == "superres").all()
    inside = np.asarray(solved["superres_bins"].data) > 0
    assert (found["n_blocks"] == inside.sum()).all() and found["width_um"].unique().tolist() == [BIN_UM]
    estimate, true = np.nan_to_num(np.asarray(solved["superres"].data)), np.asarray(counts.sel(c=genes))
    np.testing.assert_allclose(found["counts_per_block"], true[:, inside].mean(1))
    np.testing.assert_allclose(found["pcc"], metrics.pearson(estimate, true, inside))
    np.testing.assert_allclose(found["rmse"], metrics.rmse(estimate, true, inside))
    np.testing.assert_allclose(found["ssim"], metrics.ssim(estimate, true, inside))
    pd.testing.assert_frame_equal(metrics.score(solved, counts, scale=False), found)


def test_molecules_without_a_gene_are_of_no_gene(solved):
    frame, _ = molecules_of(solved)
    solved["transcripts"] = points_of(frame, feature_key="gene")
    expected = metrics.score(solved, "transcripts")
    probes = frame.sample(frac=0.3, random_state=0).assign(gene="zz_blank")  # the last name: its code is that of a gene
    both = pd.concat([frame, probes], ignore_index=True).astype({"gene": "category"})
    both["gene"] = both["gene"].cat.remove_categories(["zz_blank", "control"])
    solved["transcripts"] = points_of(both, feature_key="gene")
    pd.testing.assert_frame_equal(metrics.score(solved, "transcripts"), expected)


def test_another_object_in_another_unit_and_turned_gives_the_same_scores(solved):
    frame, _ = molecules_of(solved)
    solved["transcripts"] = points_of(frame, feature_key="gene")
    turned = frame.assign(x=frame["y"] * UM_PER_PX, y=-frame["x"] * UM_PER_PX)  # a Xenium in µm, turned by 90°
    back = Affine([[0, -1 / UM_PER_PX, 0], [1 / UM_PER_PX, 0, 0], [0, 0, 1]], ("x", "y"), ("x", "y"))
    xenium = SpatialData(points={"molecules": points_of(turned, transformation=back, feature_key="gene")})
    here, there = metrics.score(solved, "transcripts"), metrics.score(solved, "molecules", truth_sdata=xenium)
    pd.testing.assert_frame_equal(here, there, rtol=1e-6)


def test_squares_of_another_platform_are_divided_by_area(solved):
    squares = np.arange(0.0, 320.0, 3.0)  # 7.5 µm, which divide no bin of 20 µm
    x, y = (one.ravel() for one in np.meshgrid(squares, squares))
    solved["squares"] = ShapesModel.parse(
        GeoDataFrame(geometry=box(x, y, x + 3, y + 3)), transformations={"phantom": Identity()}
    )
    even = np.full((len(x), 4), 9.0)
    solved["hd"] = table_of(even, solved["superres_table"].var_names, "squares", np.arange(len(x)))
    found = metrics.score(solved, "hd")
    np.testing.assert_allclose(found["counts_per_block"], 9 * (8 / 3) ** 2)
    assert (found["rmse"] > 1e3).all()  # the truth is constant but for rounding: it was not divided unevenly


def table_of(counts, genes, region, ids):
    table = AnnData(np.asarray(counts, np.float32), var=pd.DataFrame(index=list(genes)))
    table.obs["region"], table.obs["id"] = pd.Categorical([region] * len(counts)), np.asarray(ids)
    return TableModel.parse(table, region=region, region_key="region", instance_key="id")


def test_a_result_agrees_with_itself(solved):
    found = metrics.score(solved, "superres_table", blocks=(1, 2))
    np.testing.assert_allclose(found[["factor", "pcc", "ssim"]], 1, atol=1e-6)
    np.testing.assert_allclose(found["rmse"], 0, atol=1e-6)


def test_only_bins_that_the_truth_covers_are_scored(solved):
    frame, counts = molecules_of(solved)
    half = frame[frame["x"] < 160]
    cut = pd.DataFrame({"x": 160.0, "y": [0.0, 320.0], "gene": "control"})
    solved["part"] = points_of(pd.concat([half, cut], ignore_index=True), feature_key="gene")
    found = metrics.score(solved, "part")
    assert (found["n_blocks"] == (np.asarray(solved["superres_bins"].data)[:, :20] > 0).sum()).all()
    counts[:, :, 20:] = np.nan
    pd.testing.assert_frame_equal(metrics.score(solved, counts), found)
    triangle = frame[(frame["x"] + frame["y"]) < 320]
    solved["triangle"] = points_of(triangle.reset_index(drop=True), feature_key="gene")
    y, x = np.nonzero(np.asarray(solved["superres_bins"].data))
    assert 0.85 < metrics.score(solved, "triangle")["n_blocks"].iloc[0] / (x + y + 2 <= 40).sum() <= 1


def test_depth_is_matched_per_gene_by_scaling_the_estimate(solved):
    _, counts = molecules_of(solved)
    deeper = counts * xr.DataArray([1.0, 3.0, 10.0, 1.0], dims="c", coords={"c": counts.coords["c"]})
    one, other = metrics.score(solved, counts), metrics.score(solved, deeper)
    ratio = (other["factor"] / one["factor"]).reindex(counts.coords["c"].values)
    np.testing.assert_allclose(ratio, [1, 3, 10, 1])
    inside = np.asarray(solved["superres_bins"].data) > 0
    scaled = np.asarray(solved["superres"].data)[:, inside] * one["factor"].to_numpy()[:, None]
    true = np.asarray(counts.sel(c=one.index.to_list()).data)[:, inside]
    np.testing.assert_allclose(scaled.sum(1), true.sum(1), rtol=1e-5)
    np.testing.assert_allclose(one["pcc"], metrics.pearson(scaled, true, np.ones(inside.sum(), bool)))
    assert (metrics.score(solved, deeper, scale=False)["rmse"] > other["rmse"]).sum() >= 2


def test_intervals_include_counting_noise_and_hold_nine_of_ten(solved):
    mean, std = (np.nan_to_num(np.asarray(solved[name].data, float)) for name in ("superres", "superres_std"))
    rng, shape = np.random.default_rng(0), np.square(mean / np.maximum(std, 1e-12)).clip(1e-3, 1e7)
    names = solved["superres"].coords["c"].values
    counts = xr.DataArray(rng.poisson(rng.gamma(shape, mean / shape)), dims=("c", "y", "x"), coords={"c": names})
    found = metrics.score(solved, counts, scale=False)
    assert found["coverage"].to_numpy() == pytest.approx(0.9, abs=0.02)
    spread = solved["superres_std"]
    for width in (0.25, 4.0):  # the score is best where the law is right
        solved["superres_std"] = spread.copy(data=spread.data * width)  # keeps its transformations
        assert metrics.score(solved, counts, scale=False)["crps"].sum() > found["crps"].sum()


def test_the_spread_of_blocks_is_that_of_regions(solved):
    table, inside = solved["superres_table"], np.asarray(solved["superres_bins"].data) > 0
    blocked = whole_blocks(inside, 4)
    y, x = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
    table.obs["block"] = pd.Categorical([f"{i:02d} {j:02d}" for i, j in zip(y // 4, x // 4, strict=True)])
    expected = hd.tl.regions(solved, "block").to_df("std")
    mean = np.nan_to_num(np.asarray(solved["superres"].data, float))
    found = _std_of_blocks(find_result(solved, "superres"), np.arange(4), mean, blocked, 4)
    names = [f"{i:02d} {j:02d}" for i, j in np.argwhere(blocked)]
    np.testing.assert_allclose(found[:, blocked].T, expected.loc[names], rtol=1e-6)


def test_expected_counts_have_no_counting_noise(solved):
    found = metrics.score(solved, "phantom_truth")
    assert (found["pcc_ceiling"] == 1).all() and found["coverage"].between(0, 1).all()
    counted = metrics.score(solved, molecules_of(solved)[1])
    assert (counted["pcc_ceiling"] < 1).all() and (counted["pcc"] < counted["pcc_ceiling"] + 0.05).all()
    assert (found["pcc"] > counted["pcc"]).all()


def test_several_results_and_blocks_make_one_tidy_table(solved):
    hd.tl.superresolve(solved, "phantom_full_image", key_added="plain", with_std=False, **HOW)
    keys = ["superres", "plain"]
    found = metrics.score(solved, "phantom_truth", key_added=keys, blocks=(2, 1))
    assert len(found) == 4 * 2 * 2 and found.index.name == "gene"
    assert sorted(found["width_um"].unique()) == [20, 40] and found["result"].unique().tolist() == keys
    plain, ours = (found[found["result"] == key] for key in ("plain", "superres"))
    assert plain[["coverage", "crps"]].isna().all().all() and ours[SCORES].notna().all().all()
    np.testing.assert_allclose(plain["pcc"], ours["pcc"])


def test_a_cropped_result_is_scored_on_its_bins(solved):
    frame, _ = molecules_of(solved)
    xenium = SpatialData(points={"molecules": points_of(frame, feature_key="gene")})
    part = bounding_box_query(
        solved,
        axes=("x", "y"),
        min_coordinate=[64, 80],
        max_coordinate=[240, 240],
        target_coordinate_system="phantom",
    )
    found = metrics.score(part, "molecules", truth_sdata=xenium, scale=False)
    place = np.floor(frame[["y", "x"]].to_numpy() * UM_PER_PX / BIN_UM).astype(int)
    labels = np.asarray(solved["superres_bins"].data)
    kept = np.isin(labels, np.asarray(part["superres_bins"].data)) & (labels > 0)
    gene = found.index[0]
    here = (frame["gene"] == gene).to_numpy() & kept[tuple(place.clip(0, 39).T)]
    assert found["n_blocks"].iloc[0] == kept.sum()
    assert found.loc[gene, "counts_per_block"] == pytest.approx(here.sum() / kept.sum())


def test_cells_in_points_and_a_gene_without_counts(solved):
    frame, counts = molecules_of(solved)
    genes = list(solved["superres_table"].var_names)
    solved["centres"] = PointsModel.parse(frame[["x", "y"]], transformations={"phantom": Identity()})
    each = (frame["gene"].to_numpy()[:, None] == np.array(genes)).astype(float)
    each[:, 1] = 0
    solved["cells"] = table_of(each, genes, "centres", frame.index)
    found, expected = metrics.score(solved, "cells"), metrics.score(solved, counts)
    assert (
        len(found) == 4
        and found.iloc[1][["pcc", "rmse", "crps"]].isna().all()
        and found["counts_per_block"].iloc[1] == 0
    )
    without = {"index": genes[1], "columns": "pcc_ceiling"}  # whose halves are other molecules
    pd.testing.assert_frame_equal(found.drop(**without), expected.drop(**without))


def test_missing_genes_are_named(solved, caplog):
    _, counts = molecules_of(solved)
    found = metrics.score(solved, counts[:3])
    assert len(found) == 3
    absent = str(counts.coords["c"].values[3])
    assert f"the truth lacks 1 of 4 genes of 'superres', which are not scored: {absent}" in caplog.text


def remedy(error, **names):
    """Run the code of the message."""
    code = re.findall(r"`([^`]+)`", str(error.value))[-1]
    exec(code, names)


def test_the_remedy_names_the_column_of_genes(solved):
    frame, _ = molecules_of(solved)
    solved["transcripts"] = points_of(frame)
    with pytest.raises(KeyError, match="needs the column of genes in its metadata") as error:
        metrics.score(solved, "transcripts")
    remedy(error, sdata=solved)
    assert len(metrics.score(solved, "transcripts")) == 4


def test_the_remedy_places_a_truth_of_another_system(solved):
    frame, _ = molecules_of(solved)
    xenium = SpatialData(
        points={"molecules": points_of(frame, "global", Scale([1, 1], ("x", "y")), feature_key="gene")}
    )
    with pytest.raises(KeyError, match="shares no coordinate system with labels/superres_bins") as error:
        metrics.score(solved, "molecules", truth_sdata=xenium)
    remedy(error, truth_sdata=xenium)
    assert len(metrics.score(solved, "molecules", truth_sdata=xenium)) == 4


def test_the_remedy_takes_counts_from_a_layer_and_names_from_a_column(solved):
    genes = list(solved["superres_table"].var_names)
    counts = np.random.default_rng(0).poisson(3.0, (1600, 4)).astype(np.float32)
    y, x = (8.0 * one.ravel() + 4 for one in np.mgrid[:40, :40])
    solved["circles"] = ShapesModel.parse(np.c_[x, y], geometry=0, radius=2.0, transformations={"phantom": Identity()})
    table = table_of(np.log1p(counts), [f"ENSG{i}" for i in range(4)], "circles", np.arange(1600))
    table.var["symbol"], table.layers["counts"] = genes, counts
    solved["cells"] = table
    with pytest.raises(KeyError, match="`truth` needs genes of the result") as error:
        metrics.score(solved, "cells")
    remedy(error, sdata=solved)
    with pytest.raises(ValueError, match=r"needs counts in `X` of the table, but they are log\(1 \+ x\)") as error:
        metrics.score(solved, "cells")
    remedy(error, sdata=solved)
    np.testing.assert_allclose(metrics.score(solved, "cells")["counts_per_block"], counts.mean(0), rtol=0.05)
    with pytest.raises(KeyError, match=r"Pass `truth='cells'`"):
        metrics.score(solved, "circles")


def test_other_mistakes_say_what_is_needed(solved):
    _, counts = molecules_of(solved)
    with pytest.raises(ValueError, match=r"needs named genes and the bins of the result, \(genes, 40, 40\)"):
        metrics.score(solved, np.asarray(counts))
    with pytest.raises(ValueError, match=r"`blocks` needs whole numbers of bins, 1 or more, but is \(0,\)"):
        metrics.score(solved, counts, blocks=(0,))
    with pytest.raises(ValueError, match=r"a block is wholly in tissue.*Pass `blocks=\(1, 2\)`"):
        metrics.score(solved, counts, blocks=(1, 2, 50))
    with pytest.raises(ValueError, match="needs to cover bins of 'superres' that are in the tissue, but covers none"):
        metrics.score(solved, counts * np.nan)
    with pytest.raises(TypeError, match="`truth` needs the name of an element or an array, but is 3"):
        metrics.score(solved, 3)
    with pytest.raises(KeyError, match=r"needs a table, points or an image of `sdata`.*Pass `truth='phantom_truth'`"):
        metrics.score(solved, "phantom_truht")
    with pytest.raises(KeyError, match=r"is not one of labels/superres_bins. Pass `coordinate_system='phantom'`"):
        metrics.score(solved, "phantom_truth", coordinate_system="elsewhere")
    turned = solved["phantom_truth"].copy()
    set_transformation(turned, Affine([[0, 4, 0], [-4, 0, 320], [0, 0, 1]], ("x", "y"), ("x", "y")), "phantom")
    with pytest.raises(ValueError, match="needs pixels parallel to the bins, but it is rotated or flipped"):
        metrics.score(solved, turned)
