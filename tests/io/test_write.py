"""What is written, what is refused, and what a crash leaves behind."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
from spatialdata.models import Image2DModel, get_table_keys
from spatialdata.transformations import Affine, get_transformation, set_transformation

from hadmst_sc.io import as_spatialdata, check_output, check_size, read_observation, write_prediction
from hadmst_sc.io import write as write_module
from hadmst_sc.io.elements import plain
from hadmst_sc.section.observation import Prediction

HELPERS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
visium_section, stand_in, fingerprint = (HELPERS[name] for name in ("visium_section", "stand_in", "fingerprint"))
OUTPUTS = {"superres": "images", "superres_std": "images", "superres_bins": "labels", "superres_table": "tables"}


def predicted(sdata, **kwargs):
    obs = read_observation(sdata, "S1_full_image", bin_um=20.0, genes=["gene-2", "gene-0"])
    return stand_in(obs, **kwargs), obs.source


@pytest.fixture(scope="module")
def templates(tmp_path_factory) -> Path:
    """Stores to copy: writing one anew for every test would take a second each."""
    folder = tmp_path_factory.mktemp("templates")
    sdata = visium_section()
    del sdata["S1_hires_image"], sdata["S1_lowres_image"]
    sdata.write(folder / "inputs")
    shutil.copytree(folder / "inputs", folder / "result")
    sdata = sd.read_zarr(folder / "result")
    write_prediction(sdata, *predicted(sdata))
    return folder


@pytest.fixture
def backed(templates, tmp_path) -> sd.SpatialData:
    """A section in a store."""
    shutil.copytree(templates / "inputs", tmp_path / "section.zarr")
    return sd.read_zarr(tmp_path / "section.zarr")


@pytest.fixture
def finished(templates, tmp_path) -> sd.SpatialData:
    """A section in a store, with a result."""
    shutil.copytree(templates / "result", tmp_path / "section.zarr")
    return sd.read_zarr(tmp_path / "section.zarr")


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check_elements(sdata: sd.SpatialData, prediction: Prediction) -> None:
    shown = [np.where(prediction.inside, one, np.nan) for one in (prediction.mean, prediction.std)]
    np.testing.assert_array_equal(sdata["superres"].data, shown[0])
    assert sdata["superres"].dtype == np.float32 and list(sdata["superres"].coords["c"].values) == ["gene-2", "gene-0"]
    np.testing.assert_array_equal(sdata["superres_std"].data, shown[1])
    labels = np.asarray(sdata["superres_bins"].data)
    row, col = np.nonzero(prediction.inside)
    assert labels.dtype == np.uint32 and ((labels > 0) == prediction.inside).all()
    table = sdata["superres_table"]
    np.testing.assert_array_equal(labels[row, col], row * 64 + col + 1)
    np.testing.assert_array_equal(table.obs["bin_id"], labels[row, col])
    np.testing.assert_array_equal(table.obs[["array_row", "array_col"]], np.c_[row, col])
    np.testing.assert_array_equal(table.obs["covered"], prediction.covered[row, col])
    np.testing.assert_array_equal(table.obs["measured"], prediction.covered[row, col] > 0.5)
    assert table.obs["covered"].dtype == np.float32
    np.testing.assert_array_equal(table.X, prediction.mean[:, row, col].T)
    np.testing.assert_array_equal(table.layers["std"], prediction.std[:, row, col].T)
    assert table.X.dtype == np.float32 and table.obs_names[0] == f"S1_{row[0]:05d}_{col[0]:05d}"
    np.testing.assert_array_equal(table.var["r2"], [0, 1])
    np.testing.assert_allclose(table.obsm["spatial"], np.c_[col + 0.5, row + 0.5] * 5, atol=1e-9)
    assert get_table_keys(table) == ("superres_bins", "region", "bin_id")
    library = table.uns["spatial"]["S1"]
    assert library["scalefactors"]["spot_diameter_fullres"] == pytest.approx(5)
    assert library["images"]["hires"].shape == (400, 320, 3)
    assert table.uns["hadmst_sc"]["seed"] == 0 and list(table.uns["hadmst_sc"]["shift"]) == [1.0, 2.0]
    assert sdata.attrs["hadmst_sc"]["superres"]["genes"] == "none"


@pytest.mark.parametrize("on_disk", [False, True])
def test_elements_hold_the_prediction(on_disk, backed, tmp_path):
    sdata = backed if on_disk else visium_section()
    before = fingerprint(sdata)
    prediction, source = predicted(sdata)
    assert write_prediction(sdata, prediction, source) is None
    check_elements(sdata, prediction)
    after = fingerprint(sdata)
    assert {name: after[name] for name in before if name != "attrs"} == {
        k: v for k, v in before.items() if k != "attrs"
    }
    if on_disk:
        check_elements(sd.read_zarr(tmp_path / "section.zarr"), prediction)
        assert sdata["superres"].data.chunks[0] == (1, 1)  # one gene to a chunk
        assert sdata.is_self_contained()
        assert [path.name for path in tmp_path.iterdir()] == ["section.zarr"]
        groups = json.loads((tmp_path / "section.zarr" / "labels" / "zarr.json").read_text())
        assert groups["attributes"]["ome"]["labels"] == ["superres_bins"]


def test_writing_announces_no_defaults_of_a_dependency(backed):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        write_prediction(backed, *predicted(backed))
    assert not [w for w in caught if "autosharding" in str(w.message)]


def test_writing_leaves_the_files_of_the_inputs_alone(backed, tmp_path):
    sdata = backed
    before = files(tmp_path)
    write_prediction(sdata, *predicted(sdata))
    after = files(tmp_path)
    changed = {path.relative_to(tmp_path / "section.zarr").as_posix() for path in before if before[path] != after[path]}
    assert changed == {"zarr.json"}  # the list of elements and the provenance


def test_copy_holds_only_the_new_elements_and_leaves_the_section_alone():
    sdata = visium_section()
    before = fingerprint(sdata)
    prediction, source = predicted(sdata)
    new = as_spatialdata(sdata, prediction, source, "superres")
    check_elements(new, prediction)
    assert {name for _, name, _ in new.gen_elements()} == set(OUTPUTS)
    assert fingerprint(sdata) == before


@pytest.mark.parametrize("on_disk", [False, True])
def test_overwriting_replaces_all_and_drops_what_is_no_longer_made(on_disk, finished, tmp_path):
    sdata = finished if on_disk else visium_section()
    prediction, source = predicted(sdata)
    if not on_disk:
        write_prediction(sdata, prediction, source)
    second = Prediction(
        prediction.grid,
        prediction.genes,
        prediction.mean * 2,
        None,
        prediction.inside,
        prediction.covered,
        {},
        {"seed": 1},
    )
    write_prediction(sdata, second, source, overwrite=True)
    views = [sdata, sd.read_zarr(tmp_path / "section.zarr")] if on_disk else [sdata]
    for one in views:
        np.testing.assert_array_equal(np.nan_to_num(one["superres"].data), second.mean)
        assert "superres_std" not in one and "std" not in one["superres_table"].layers
        assert one.attrs["hadmst_sc"]["superres"]["seed"] == 1


def test_two_results_keep_their_own_provenance(finished, tmp_path):
    sdata = finished
    sdata.attrs["note"] = "mine"
    write_prediction(sdata, *predicted(sdata), key_added="second")
    fresh = sd.read_zarr(tmp_path / "section.zarr")
    assert set(fresh.attrs["hadmst_sc"]) == {"superres", "second"} == set(sdata.attrs["hadmst_sc"])
    assert sdata.attrs["note"] == "mine" and "note" not in fresh.attrs  # what the user has not written stays unwritten


def test_section_reads_again_with_two_tables_after_the_first_call(finished):
    sdata = finished
    again = read_observation(sdata, "S1_full_image", bin_um=20.0, genes=["gene-2", "gene-0"])
    np.testing.assert_array_equal(stand_in(again).mean, np.nan_to_num(sdata["superres"].data))
    with pytest.raises(ValueError, match="'superres_table' holds results of an earlier run"):
        read_observation(sdata, "S1_full_image", table_key="superres_table")


# --- refusals ---


@pytest.mark.parametrize("name", ["", "a/b", "a b", "../x", ".", "..", ".hidden", "__x", 3, None])
def test_invalid_names_are_refused_before_anything_is_computed(name):
    with pytest.raises(ValueError, match=r"`key_added` needs letters.*Pass `key_added='superres'`"):
        check_output(visium_section(), name, overwrite=True)


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_names_that_others_hold_are_refused(name, overwrite):
    sdata = visium_section()
    sdata[name] = sdata["S1"].copy()
    wanted = "would overwrite shapes/" if overwrite else "needs names that are free, but the object has shapes/"
    with pytest.raises(ValueError, match=wanted + name):
        check_output(sdata, "superres", overwrite=overwrite)


def test_names_differing_in_case_are_refused():
    sdata = visium_section()
    sdata["Superres_Table"] = sdata["table"].copy()
    with pytest.raises(ValueError, match="tables/Superres_Table"):
        check_output(sdata, "superres", overwrite=False)


@pytest.mark.parametrize("name", ["S1_full_image", "S1", "table"])
def test_inputs_are_never_overwritten(name):
    with pytest.raises(ValueError, match=r"would overwrite .*Inputs are never replaced"):
        check_output(visium_section(), name, overwrite=True)


def test_an_image_of_the_user_under_the_name_of_a_result_is_no_result():
    sdata = visium_section()
    sdata["superres"] = Image2DModel.parse(np.zeros((3, 4, 4), np.uint8), dims=("c", "y", "x"))
    with pytest.raises(ValueError, match="would overwrite images/superres"):
        check_output(sdata, "superres", overwrite=True)


def test_a_name_taken_only_on_disk_is_taken(finished):
    sdata = finished
    del sdata["superres_std"]
    del sdata["superres"], sdata["superres_bins"], sdata["superres_table"]
    with pytest.raises(ValueError, match="images/superres"):
        check_output(sdata, "superres", overwrite=False)
    check_output(sdata, "superres", overwrite=True)


def test_stores_of_the_old_format_are_refused(backed, tmp_path):
    sdata = backed
    (tmp_path / "section.zarr" / "zarr.json").unlink()
    with pytest.raises(ValueError, match=r"zarr format 3.*sdata.write\('new.zarr'\)"):
        check_output(sdata, "superres", overwrite=False)


def test_sizes_beyond_the_limits_are_refused_with_the_estimate(backed):
    with pytest.raises(ValueError, match=r"2\.4 GB \(200 genes x 1,000,000 bins\).*sdata\.write\('section\.zarr'\)"):
        check_size(visium_section(), 200, 10**6, 5 * 10**5, with_std=True)
    with pytest.raises(ValueError, match=r"but `copy=True` .* keeps it in memory.*Leave that out"):
        check_size(None, 200, 10**6, 5 * 10**5, with_std=True)
    check_size(visium_section(), 200, 10**6, 5 * 10**5, with_std=False)
    check_size(backed, 200, 10**6, 5 * 10**5, with_std=True)
    with pytest.raises(ValueError, match=r"at most 2,000,000 bins in tissue, but there are 2,000,001"):
        check_size(backed, 1, 10**7, 2_000_001, with_std=False)


def test_nothing_is_written_when_the_result_is_too_large(monkeypatch):
    sdata = visium_section()
    prediction, source = predicted(sdata)
    before = fingerprint(sdata)
    monkeypatch.setattr(write_module, "MAX_IN_MEMORY", 1000)
    for write in (write_prediction, as_spatialdata):
        with pytest.raises(ValueError, match="backed by a store"):
            write(sdata, prediction, source)
    assert fingerprint(sdata) == before


# --- errors; kills and interrupts are in tests/reliability/test_writes.py ---


@pytest.mark.parametrize("where", ["elements", "rereading"])
def test_an_exception_leaves_store_and_object_as_they_were(where, finished, tmp_path, monkeypatch):
    sdata = finished
    prediction, source = predicted(sdata)
    before, on_disk = fingerprint(sdata), files(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "elements":
            patch.setattr(sd.SpatialData, "write", full)
        else:  # the new elements are in place already
            patch.setattr(sd, "read_zarr", full)
        with pytest.raises(OSError, match=r"`sdata` needs a store that can be written.*No space left.*Free some space"):
            write_prediction(sdata, prediction, source, overwrite=True)
    assert fingerprint(sdata) == before and files(tmp_path) == on_disk
    write_prediction(sdata, prediction, source, overwrite=True)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("at", [1, 2, 3, 4, "attrs"])
def test_an_interrupt_between_two_elements_leaves_the_old_result(at, on_disk, finished, tmp_path, monkeypatch):
    sdata = finished
    prediction, source = predicted(sdata)
    if not on_disk:
        sdata.path = None
    before, stored, order = fingerprint(sdata), files(tmp_path), [name for _, name, _ in sdata.gen_elements()]
    put, calls = sd.SpatialData.__setitem__, []

    def limited(self, name, element):
        calls.append(name)
        if len(calls) == at:
            raise KeyboardInterrupt
        put(self, name, element)

    def set_attrs(self, value):
        if self is sdata and "attrs" not in calls:
            calls.append("attrs")
            raise KeyboardInterrupt
        self._attrs = value

    with monkeypatch.context() as patch:
        patch.setattr(sd.SpatialData, "__setitem__", limited)
        if at == "attrs":
            patch.setattr(sd.SpatialData, "attrs", property(lambda self: self._attrs, set_attrs))
        with pytest.raises(KeyboardInterrupt):
            write_prediction(sdata, prediction, source, overwrite=True)
    assert fingerprint(sdata) == before and files(tmp_path) == stored
    assert [name for _, name, _ in sdata.gen_elements()] == order


def test_a_result_that_another_object_of_the_store_wrote_can_be_replaced(backed, tmp_path):
    earlier = sd.read_zarr(tmp_path / "section.zarr")  # opened before there was a result
    write_prediction(backed, *predicted(backed))
    with pytest.raises(ValueError, match="needs names that are free"):
        check_output(earlier, "superres", overwrite=False)
    prediction, source = predicted(earlier)
    write_prediction(earlier, prediction, source, key_added="second")
    assert set(sd.read_zarr(tmp_path / "section.zarr").attrs["hadmst_sc"]) == {"superres", "second"}
    write_prediction(earlier, prediction, source, overwrite=True)
    assert set(earlier.attrs["hadmst_sc"]) == {"superres", "second"}
    check_elements(sd.read_zarr(tmp_path / "section.zarr"), prediction)


def test_the_list_of_contents_is_as_zarr_would_write_it(finished, tmp_path):
    root = tmp_path / "section.zarr" / "zarr.json"
    ours = json.loads(root.read_text())
    finished.write_consolidated_metadata()
    zarrs = json.loads(root.read_text())
    assert ours == zarrs
    listed = [list(one["consolidated_metadata"]["metadata"]) for one in (ours, zarrs)]
    assert listed[0] == listed[1]  # zarr misreads other orders


def test_a_result_that_the_disk_cannot_hold_is_refused_before_the_work(backed):
    sizes = {"n_bins": 2 * 10**6, "n_inside": 2 * 10**6, "with_std": True}
    with pytest.raises(OSError, match=r"room for a result of at least [\d.]+ GB, but the disk of section.zarr has"):
        check_size(backed, 10**9, **sizes)
    check_size(backed, 1, **sizes)


# --- details ---


def test_names_of_genes_are_data_whatever_they_hold(backed, tmp_path):
    sdata = backed
    names = ["../x", "a/b", "g" * 310, "µ é 基因", "", ".", "zarr.json", " "]
    table = sdata["table"].copy()
    table.var_names = names
    table.var["symbol"] = pd.array(names, dtype="string")  # anndata refuses to write these as they are
    del sdata["table"]
    sdata["table"] = table
    obs = read_observation(sdata, "S1_full_image", bin_um=20.0, genes=names)
    assert obs.genes == tuple(names)
    write_prediction(sdata, stand_in(obs), obs.source)
    fresh = sd.read_zarr(tmp_path / "section.zarr")
    assert list(fresh["superres"].coords["c"].values) == names == list(fresh["superres_table"].var_names)
    assert list(fresh["superres_table"].var["symbol"]) == names


def test_provenance_is_plain_whatever_goes_in():
    value = {
        "t": (1, 2.5),
        "n": None,
        "x": float("nan"),
        "a": np.arange(3),
        "b": np.bool_(True),
        "d": [{"a": 1}],
        "e": [],
    }
    value |= {
        "genes": {"a/b": 1},
        "path": Path("x"),
        "deep": {"f": np.float32(0.5)},
        "mixed": [1, "a"],
        "names": ("p", "q"),
    }
    expected = {"t": [1.0, 2.5], "n": "none", "x": "nan", "a": [0, 1, 2], "b": True, "d": '[{"a": 1}]', "e": "[]"}
    expected |= {"genes": '{"a/b": 1}', "path": "x", "deep": {"f": 0.5}, "mixed": '[1, "a"]', "names": ["p", "q"]}
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)


def test_large_images_get_a_pyramid():
    sdata = visium_section()
    obs = read_observation(sdata, "S1_full_image", bin_um=20.0, genes=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hadmst_sc.io.elements.PYRAMID_FROM", 32)
        new = as_spatialdata(sdata, stand_in(obs), obs.source, "superres")
    assert [level["image"].shape for level in new["superres"].values()] == [(1, 80, 64), (1, 40, 32), (1, 20, 16)]


def test_every_system_of_the_image_is_a_system_of_the_result():
    sdata = visium_section()
    obs = read_observation(sdata, "S1_hires_image", bin_um=20.0, genes=1)
    write_prediction(sdata, stand_in(obs), obs.source)
    for name in ("superres", "superres_std", "superres_bins"):
        maps = get_transformation(sdata[name], get_all=True)
        assert set(maps) == {"S1", "S1_downscaled_hires"}
        matrix = maps["S1"].to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_allclose(matrix, np.diag([5, 5, 1]), atol=1e-9)  # full-resolution pixels per bin
        half = maps["S1_downscaled_hires"].to_affine_matrix(("x", "y"), ("x", "y"))
        np.testing.assert_allclose(half, np.diag([2.5, 2.5, 1]), atol=1e-9)


@pytest.mark.parametrize("mirrored", [False, True])
def test_stored_background_shows_the_spot_where_the_table_says_it_is(mirrored, monkeypatch):
    monkeypatch.setattr("hadmst_sc.io.resample.THUMBNAIL", 100)
    image = np.zeros((3, 400, 320), np.uint8)
    image[:, 240:248, 80:88] = 255
    sdata = visium_section(image=image)
    if mirrored:
        mirror = Affine([[-1, 0, 320], [0, 1, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
        for name in ("S1", "S1_full_image"):
            set_transformation(sdata[name], {"S1": mirror}, set_all=True)
    prediction, source = predicted(sdata)
    table = as_spatialdata(sdata, prediction, source, "superres")["superres_table"]
    library = table.uns["spatial"]["S1"]
    assert library["images"]["hires"].shape == (100, 80, 3)
    row, col = np.argwhere(library["images"]["hires"][..., 0] == 255).mean(0) + 0.5
    found = np.array([col, row]) / library["scalefactors"]["tissue_hires_scalef"]
    assert found == pytest.approx([320 - 84 if mirrored else 84, 244])
    x = (table.obs["array_col"].iloc[0] + 0.5) * 5  # pixels
    assert table.obsm["spatial"][0, 0] == pytest.approx(320 - x if mirrored else x)
    assert library["scalefactors"]["spot_diameter_fullres"] == pytest.approx(5)


def test_columns_of_the_user_are_kept_beside_ours():
    sdata = visium_section()
    table = sdata["table"]
    table.var["r2"] = np.arange(8)  # the name of one of ours
    table.var["r2_input"] = "theirs"
    table.var["symbol"] = table.var_names.str.upper()
    table.obs["measured"] = "yes"
    before = fingerprint(sdata)
    prediction, source = predicted(sdata)
    var = as_spatialdata(sdata, prediction, source)["superres_table"].var
    assert list(var["r2"]) == [0, 1] and list(var["r2_input_"]) == [2, 0]
    assert list(var["r2_input"]) == ["theirs"] * 2 and list(var["symbol"]) == ["GENE-2", "GENE-0"]
    write_prediction(sdata, prediction, source)
    after = fingerprint(sdata)
    assert after["table"] == before["table"] and list(sdata["table"].obs["measured"].unique()) == ["yes"]


def test_columns_that_no_store_can_hold_are_renamed_in_the_result(tmp_path):
    sdata = visium_section()
    var = sdata["table"].var
    var["Gene name"], var["log/mean"], var["gene_ids"] = "x", 1.0, [f"id{i}" for i in range(len(var))]
    var.index.name = "gene_ids"
    obs = read_observation(sdata, "S1_full_image", bin_um=20.0)
    new = as_spatialdata(sdata, stand_in(obs), obs.source)
    new.write(tmp_path / "new.zarr")
    found = sd.read_zarr(tmp_path / "new.zarr")["superres_table"].var
    assert (found["Gene_name"] == "x").all() and (found["log_mean"] == 1.0).all()
    assert list(found["gene_ids"]) == [var["gene_ids"][gene] for gene in found.index]


def test_an_attribute_of_our_name_that_is_no_record_is_reported_before_anything_is_computed():
    sdata = visium_section()
    sdata.attrs["hadmst_sc"] = "notes"
    with pytest.raises(ValueError, match="needs to be a dictionary of runs") as raised:
        check_output(sdata, "superres", overwrite=False)
    exec(re.search(r"Call `(.*)`\.", str(raised.value))[1], {"sdata": sdata})
    check_output(sdata, "superres", overwrite=False)
    assert sdata.attrs == {"hadmst_sc_input": "notes"}
