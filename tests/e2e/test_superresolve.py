"""The main job on the phantom: what arrives, where it lies, and that the truth is nearer than without it."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from spatialdata.models import get_table_keys
from spatialdata.transformations import get_transformation

import hadmst_sc as hd

IMAGE = "phantom_full_image"
ELEMENTS = ["superres", "superres_std", "superres_bins", "superres_table"]


def array(sdata, name: str) -> np.ndarray:
    return np.asarray(sdata[name].data)


def fast(sdata, **settings):
    return hd.tl.superresolve(sdata, IMAGE, **({"show_progress_bar": False} | settings))


def test_the_result_has_the_elements_of_the_contract(solved):
    table = solved.tables["superres_table"]
    assert all(name in solved for name in ELEMENTS)
    assert get_table_keys(table) == ("superres_bins", "region", "bin_id")
    assert list(solved["superres"].coords["c"].values) == list(table.var_names)
    assert {"bin_id", "array_row", "array_col", "measured"} <= set(table.obs) and "std" in table.layers
    assert {"loo_r2", "loo_r2_he", "mean_counts_per_bin"} <= set(table.var)
    assert set(get_transformation(solved["superres"], get_all=True)) == set(
        get_transformation(
            solved[IMAGE]["scale0"].image if hasattr(solved[IMAGE], "keys") else solved[IMAGE], get_all=True
        )
    )


def test_table_image_and_labels_agree_bin_by_bin(solved):
    table = solved.tables["superres_table"]
    row, col = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
    np.testing.assert_array_equal(table.X, array(solved, "superres")[:, row, col].T)
    np.testing.assert_array_equal(table.layers["std"], array(solved, "superres_std")[:, row, col].T)
    np.testing.assert_array_equal(table.obs["bin_id"], array(solved, "superres_bins")[row, col])
    assert (array(solved, "superres_bins") > 0).sum() == table.n_obs


def test_values_are_finite_non_negative_counts_per_bin(solved):
    table = solved.tables["superres_table"]
    assert np.isfinite(table.X).all() and (table.X >= 0).all() and (table.layers["std"] >= 0).all()
    # Spots of 55 µm cover 23.8 bins of 10 µm: on average a bin holds that share of a spot's counts.
    per_spot = np.asarray(solved.tables["table"][:, table.var_names].X.mean(0)).ravel()
    measured = table.X[table.obs["measured"].to_numpy()].mean(0) * np.pi * 27.5**2 / 100
    np.testing.assert_allclose(measured, per_spot, rtol=0.25)


def test_the_truth_is_nearer_than_with_nearest_spots(solved):
    table = solved.tables["superres_table"]
    truth = array(solved, "phantom_truth")
    names = [str(c) for c in solved["phantom_truth"].coords["c"].values]
    row, col = table.obs["array_row"].to_numpy(), table.obs["array_col"].to_numpy()
    truth = truth[[names.index(g) for g in table.var_names]][:, row, col]
    from scipy.spatial import cKDTree

    spots = solved.tables["table"]
    nearest = cKDTree(spots.obsm["spatial"]).query(table.obsm["spatial"])[1]
    naive = np.asarray(spots[:, table.var_names].X.todense())[nearest].T
    ours, theirs = (hd.metrics.pearson(x, truth, np.ones(truth.shape[1], bool)).mean() for x in (table.X.T, naive))
    assert ours > theirs + 0.05


def test_provenance_says_how_it_was_made(solved):
    made = solved.tables["superres_table"].uns["hadmst_sc"]
    assert made["image_key"] == IMAGE and made["model"] == "default" and len(made["model_sha256"]) == 64
    assert made["bin_um"] == 10.0 and made["with_std"] is True and made["random_state"] == 0
    assert made["versions"]["torch"] and made["registration"]
    assert solved.attrs["hadmst_sc"]["superres"]["model"] == "default"


def test_backed_store_holds_the_same_result_and_keeps_the_input(phantom, tmp_path):
    hd.datasets.phantom(seed=1, n_genes=4, size_um=800.0).write(tmp_path / "a.zarr")
    backed = sd.read_zarr(tmp_path / "a.zarr")
    fast(backed)
    fast(phantom)
    again = sd.read_zarr(tmp_path / "a.zarr")
    for name in ("superres", "superres_std", "superres_bins"):
        np.testing.assert_array_equal(array(again, name), array(phantom, name))
    np.testing.assert_array_equal(again.tables["superres_table"].X, phantom.tables["superres_table"].X)
    assert (again.tables["table"].X != phantom.tables["table"].X).nnz == 0


def test_copy_leaves_the_object_alone(phantom):
    before = {name for _, name, _ in phantom.gen_elements()}
    new = fast(phantom, copy=True)
    assert {name for _, name, _ in phantom.gen_elements()} == before and "hadmst_sc" not in phantom.attrs
    names = {name for _, name, _ in new.gen_elements()}
    assert names == {"superres", "superres_std", "superres_bins", "superres_table"}


def test_a_second_run_needs_another_name_or_overwrite(phantom):
    fast(phantom, model=None)
    with pytest.raises(ValueError, match="overwrite=True"):
        fast(phantom, model=None)
    fast(phantom, model=None, overwrite=True)
    fast(phantom, model=None, key_added="second")
    assert {"superres_table", "second_table"} <= set(phantom.tables)


@pytest.mark.parametrize("consistency", ["soft", "off"])
def test_model_none_is_the_closed_form(phantom, consistency):
    fast(phantom, model=None, consistency=consistency)
    assert phantom.tables["superres_table"].uns["hadmst_sc"]["model"] == "closed form"


def test_the_standard_deviation_is_that_of_the_gene_and_can_be_left_out(phantom):
    fast(phantom)
    table = phantom.tables["superres_table"]
    ratio = np.asarray(table.layers["std"], float) ** 2 / np.asarray(table.X, float)
    np.testing.assert_allclose(ratio / ratio.mean(0), 1, rtol=1e-4)  # of every gene, a multiple of its counts
    of_gene = ratio.mean(0) / table.var["dispersion"]
    np.testing.assert_allclose(of_gene / of_gene.mean(), 1, rtol=1e-4)
    fast(phantom, with_std=False, key_added="lean")
    assert "lean_std" not in phantom and "std" not in phantom.tables["lean_table"].layers


def test_hard_consistency_returns_the_counts(phantom):
    fast(phantom, consistency="hard")
    assert phantom.tables["superres_table"].uns["hadmst_sc"]["max_spot_residual"] <= 1e-4


BAD = [
    ({"consistency": "medium"}, ValueError, "`consistency` needs one of"),
    ({"with_std": 1}, ValueError, "`with_std` needs"),
    ({"batch_size": 0}, ValueError, "`batch_size` needs a whole number of at least 1"),
    ({"n_jobs": 0}, ValueError, "`n_jobs` needs a whole number from 1 to 1,024"),
    ({"model": "nonesuch"}, FileNotFoundError, "`model` needs a bundled name"),
    ({"genes": ["nonesuch"]}, KeyError, "nonesuch"),
    ({"table_key": "nonesuch"}, KeyError, "table_key"),
    ({"bin_um": -1.0}, ValueError, "bin_um"),
    ({"key_added": "a/b"}, ValueError, "key_added"),
    ({"device": "abacus"}, ValueError, "`device=.abacus.` is not available"),
]


@pytest.mark.parametrize(("settings", "error", "message"), BAD, ids=[next(iter(b[0])) for b in BAD])
def test_a_bad_argument_is_named_and_nothing_changes(phantom, settings, error, message):
    before = {name for _, name, _ in phantom.gen_elements()}
    with pytest.raises(error, match=message):
        fast(phantom, **settings)
    assert {name for _, name, _ in phantom.gen_elements()} == before and not phantom.attrs.get("hadmst_sc")


def test_threads_are_restored(phantom):
    import torch

    before = torch.get_num_threads()
    fast(phantom, n_jobs=before + 1)
    assert torch.get_num_threads() == before


def test_mouse_brain_runs_end_to_end(data_dir):
    sdata = hd.datasets.load("visium_mouse_brain")
    hd.tl.superresolve(sdata, "visium_mouse_brain_full_image", genes=4, bin_um=40.0, show_progress_bar=False)
    table = sdata.tables["superres_table"]
    assert table.n_vars == 4 and 12_000 < table.n_obs < 18_000
    assert np.isfinite(table.X).all()


def test_the_order_of_the_spots_does_not_matter():
    given = hd.datasets.phantom(seed=2, n_genes=6, size_um=1000.0)
    shuffled = sd.deepcopy(given)
    circles = shuffled["phantom"]
    shuffled["phantom"] = circles.iloc[np.random.default_rng(0).permutation(len(circles))]
    for sdata in (given, shuffled):
        hd.tl.superresolve(sdata, "phantom_full_image", bin_um=20.0, show_progress_bar=False)
    np.testing.assert_allclose(shuffled["superres_table"].X, given["superres_table"].X, rtol=1e-4)
    gates = [sdata["superres_table"].uns["hadmst_sc"]["gate"]["share"] for sdata in (given, shuffled)]
    assert gates[0] == gates[1]
