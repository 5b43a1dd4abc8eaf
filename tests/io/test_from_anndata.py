"""An AnnData becomes the SpatialData that it was, or one message says what it lacks."""

from __future__ import annotations

import copy
import re
import runpy
from pathlib import Path

import anndata
import dask.array as da
import numpy as np
import pandas as pd
import pytest
import spatialdata as sd
import tifffile
from anndata import AnnData
from PIL import Image
from scipy import sparse

from hadmst_sc import datasets, pp
from hadmst_sc.io import from_anndata, open_store, read_observation
from hadmst_sc.io.given import check_sdata
from hadmst_sc.io.pixels import channels_first, read_pixels
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.errors import ContractError

FOLDERS = runpy.run_path(str(Path(__file__).parents[1] / "platforms" / "folders.py"))
HIRES = 0.5


@pytest.fixture(scope="module")
def phantom():
    return datasets.phantom(seed=3, n_genes=4, size_um=700.0, depth=(2, 60), augment=False)


def pixels(phantom, kind="full"):
    """``(y, x, 3)`` uint8."""
    element = phantom[f"phantom_{kind}_image"]
    level = element["scale0"]["image"] if kind == "full" else element
    return np.moveaxis(np.asarray(level.data), 0, -1)


def as_read_by_scanpy(phantom, name="phantom"):
    """Counts, positions, images in [0, 1] and scale factors, as the Visium readers of scanpy and squidpy leave them."""
    table = phantom["table"]
    obs = table.obs[["in_tissue", "array_row", "array_col"]].copy()
    adata = AnnData(table.X.copy(), obs=obs, var=table.var.copy())
    adata.obsm["spatial"] = np.asarray(table.obsm["spatial"]).copy()
    images = {kind: pixels(phantom, kind).astype(np.float32) / 255 for kind in ("hires", "lowres")}
    factors = {"tissue_hires_scalef": HIRES, "tissue_lowres_scalef": HIRES / 2, "spot_diameter_fullres": 22.0}
    adata.uns["spatial"] = {name: {"images": images, "scalefactors": factors, "metadata": {}}}
    return adata


def state(adata):
    """Everything of an AnnData that a user could notice to have changed."""
    x = adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)
    images = [
        hash(one.tobytes()) for lib in adata.uns.get("spatial", {}).values() for one in lib.get("images", {}).values()
    ]
    others = {key: value for key, value in adata.uns.items() if key != "spatial"}
    spatial = {k: [sorted(v), str(v.get("scalefactors"))] for k, v in adata.uns.get("spatial", {}).items()}
    positions = {key: np.asarray(value).tobytes() for key, value in adata.obsm.items()}
    return x.tolist(), adata.obs.to_csv(), adata.var.to_csv(), repr(others), spatial, images, positions


def same(ours, truth, atol=0.0):
    """Two observations of one section."""
    assert ours.grid == truth.grid and ours.genes == truth.genes and ours.spots == truth.spots
    np.testing.assert_array_equal(ours.counts, truth.counts)
    np.testing.assert_allclose(ours.measurement.matrix.toarray(), truth.measurement.matrix.toarray(), atol=1e-6)
    assert np.abs(ours.he.astype(int) - truth.he).max() <= atol
    np.testing.assert_array_equal(ours.inside, truth.inside)
    assert (ours.source.spot_um, ours.source.pitch_um) == (truth.source.spot_um, truth.source.pitch_um)


@pytest.mark.parametrize("kind", ["full", "hires", "lowres"])
def test_a_section_that_went_through_anndata_reads_as_it_was(phantom, kind):
    adata = as_read_by_scanpy(phantom)
    before = copy.deepcopy(state(adata))
    sdata = from_anndata(adata, pixels(phantom) if kind == "full" else None)
    assert state(adata) == before
    key = f"phantom_{kind}_image"
    same(read_observation(sdata, key, bin_um=20.0), read_observation(phantom, key, bin_um=20.0), atol=1)


def test_names_and_systems_are_those_of_spatialdata_io(phantom):
    sdata = from_anndata(as_read_by_scanpy(phantom), pixels(phantom))
    assert list(sdata.images) == [f"phantom_{kind}_image" for kind in ("full", "hires", "lowres")]
    for name in [*sdata.images, "phantom"]:
        theirs = sd.transformations.get_transformation(phantom[name], get_all=True)
        ours = sd.transformations.get_transformation(sdata[name], get_all=True)
        assert {k: str(v) for k, v in ours.items()} == {k: str(v) for k, v in theirs.items()}
    assert sdata["table"].uns["spatialdata_attrs"] == phantom["table"].uns["spatialdata_attrs"]


def written(pixels, path):
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb")
    else:
        Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize(
    "form", ["cyx", "dask", "xarray", "float", "tif", "png", "text", "16 bit", "planar", "jpeg in tif"]
)
def test_the_image_can_be_given_in_any_form(phantom, form, tmp_path):
    he = pixels(phantom)
    image = {
        "cyx": lambda: np.moveaxis(he, -1, 0),
        "dask": lambda: da.from_array(he, chunks=(100, 90, 3)),
        "xarray": lambda: phantom["phantom_full_image"]["scale0"]["image"],
        "float": lambda: he / 255,
        "tif": lambda: written(he, tmp_path / "he.tif"),
        "png": lambda: written(he, tmp_path / "he.png"),
        "text": lambda: str(written(he, tmp_path / "he.png")),
        "16 bit": lambda: written(he.astype(np.uint16) * 257, tmp_path / "he.tif"),
        "planar": lambda: (
            tifffile.imwrite(tmp_path / "he.tif", np.moveaxis(he, -1, 0), photometric="rgb", planarconfig="separate")
            or tmp_path / "he.tif"
        ),
        "jpeg in tif": lambda: (
            Image.fromarray(he).save(tmp_path / "he.tif", compression="jpeg", quality=100) or tmp_path / "he.tif"
        ),
    }[form]()
    obs = read_observation(from_anndata(as_read_by_scanpy(phantom), image), "phantom_full_image", bin_um=20.0)
    truth = read_observation(phantom, "phantom_full_image", bin_um=20.0)
    assert np.abs(obs.he.astype(int) - truth.he).max() <= (12 if "jpeg" in form else 1)


def test_a_lazy_image_stays_lazy(phantom):
    sdata = from_anndata(as_read_by_scanpy(phantom), da.from_array(pixels(phantom), chunks=(100, 90, 3)))
    assert sdata["phantom_full_image"]["scale0"]["image"].chunks is not None


def test_grey_and_transparent_files_keep_their_channels(tmp_path):
    he = np.random.default_rng(0).integers(0, 256, (8, 9, 4), np.uint8)
    assert read_pixels(written(he, tmp_path / "a.png")).shape == (8, 9, 4)
    assert read_pixels(written(he[..., 0], tmp_path / "b.png")).shape == (8, 9)
    Image.fromarray(he[..., :3]).quantize(16).save(tmp_path / "c.png")
    assert read_pixels(tmp_path / "c.png").shape == (8, 9, 3)
    Image.fromarray(he[..., :3]).convert("CMYK").save(tmp_path / "d.jpg")
    assert read_pixels(tmp_path / "d.jpg").shape == (8, 9, 3)


def test_pixels_are_counted_before_they_are_decoded(tmp_path, monkeypatch):
    written(np.zeros((40, 50, 3), np.uint8), tmp_path / "large.png")
    monkeypatch.setattr("hadmst_sc.io.pixels.BUDGET", 1999)
    with pytest.raises(ValueError, match="50 x 40 pixels, more than 1,999"):
        read_pixels(tmp_path / "large.png")


@pytest.mark.parametrize("shape", [(5,), (5, 6, 7), (2, 5, 6), (0, 6, 3), (1, 5, 6, 3)])
def test_a_shape_that_is_no_image_is_named(shape):
    with pytest.raises(ValueError, match=re.escape(f"has the shape {shape}")):
        channels_first(np.zeros(shape))


def two_libraries(phantom, with_column=True):
    one, other = (as_read_by_scanpy(phantom, name) for name in ("A 1", "B"))
    both = anndata.concat([one, other], index_unique="-", merge="same", uns_merge="unique")
    both.uns["spatial"] = one.uns["spatial"] | other.uns["spatial"]
    if with_column:
        both.obs["library"] = pd.Categorical(["A 1"] * one.n_obs + ["B"] * one.n_obs)
    return both


def test_several_libraries_become_sections_of_their_own(phantom, caplog):
    both = two_libraries(phantom)
    order = np.random.default_rng(0).permutation(both.n_obs)
    sdata = from_anndata(both[order], library_key="library")
    assert list(sdata.shapes) == ["A_1", "B"] or list(sdata.shapes) == ["B", "A_1"]
    assert "library 'A 1' is renamed 'A_1'" in caplog.text
    truth = read_observation(phantom, "phantom_hires_image", bin_um=20.0)
    for name, suffix in (("A_1", "-0"), ("B", "-1")):
        obs = read_observation(sdata, f"{name}_hires_image", bin_um=20.0)
        assert sorted(obs.spots) == sorted(f"{spot}{suffix}" for spot in truth.spots)
        rows = [obs.spots.index(f"{spot}{suffix}") for spot in truth.spots]
        np.testing.assert_array_equal(obs.counts[rows][:, [obs.genes.index(g) for g in truth.genes]], truth.counts)


@pytest.mark.parametrize("arguments", [{"library_id": "B"}, {"library_id": "B", "library_key": "library"}])
def test_one_of_several_libraries_can_be_taken(phantom, arguments):
    sdata = from_anndata(two_libraries(phantom), **arguments)
    assert list(sdata.shapes) == ["B"]
    assert sdata["table"].n_obs == phantom["table"].n_obs * (1 if "library_key" in arguments else 2)


def test_columns_of_the_user_are_not_overwritten(phantom):
    adata = as_read_by_scanpy(phantom)
    adata.obs["region"], adata.obs["spot_id"] = "cortex", "mine"
    table = from_anndata(adata)["table"]
    assert set(table.obs["region"]) == {"cortex"} and set(table.obs["spot_id"]) == {"mine"}
    assert table.uns["spatialdata_attrs"]["region_key"] == "region_"


def test_names_that_repeat_are_numbered_as_spatialdata_io_does(phantom, caplog):
    adata = as_read_by_scanpy(phantom)
    adata.var_names = ["A", "B", "A", "C"]
    obs = read_observation(from_anndata(adata), "phantom_hires_image", bin_um=20.0, genes=["A-1", "A"])
    np.testing.assert_array_equal(obs.counts, adata.X.toarray()[:, [2, 0]])
    assert "gene names repeat (1, such as 'A')" in caplog.text and list(adata.var_names) == ["A", "B", "A", "C"]


def test_a_file_on_disk_is_read_and_not_touched(phantom, tmp_path):
    as_read_by_scanpy(phantom).write_h5ad(tmp_path / "section.h5ad")
    before = (tmp_path / "section.h5ad").read_bytes()
    sdata = from_anndata(anndata.read_h5ad(tmp_path / "section.h5ad", backed="r"))
    same(
        read_observation(sdata, "phantom_hires_image", bin_um=20.0),
        read_observation(phantom, "phantom_hires_image", bin_um=20.0),
        atol=1,
    )
    assert (tmp_path / "section.h5ad").read_bytes() == before


@pytest.mark.parametrize("reader", ["scanpy", "squidpy"])
@pytest.mark.parametrize("version", [1, 2])
def test_what_the_readers_of_visium_read_agrees_with_spatialdata_io(reader, version, tmp_path):
    visium = pytest.importorskip("spatialdata_io").visium
    read = pytest.importorskip(reader)
    read = read.read_visium if reader == "scanpy" else read.read.visium
    drawn = simulate(3, size_um=700.0, n_genes=4)
    FOLDERS["visium"](tmp_path / "outs", drawn, version)
    ours = from_anndata(read(tmp_path / "outs"), tmp_path / "outs" / "he.tif")
    theirs = visium(tmp_path / "outs", dataset_id="S1", fullres_image_file="he.tif")
    for kind in ("full", "hires"):
        one, other = (read_observation(s, f"S1_{kind}_image", bin_um=20.0) for s in (ours, theirs))
        same(one, other, atol=1)


# --- what is missing ---


def refusal(adata, *args, **kwargs):
    before = copy.deepcopy(state(adata))
    with pytest.raises(ContractError) as raised:
        from_anndata(adata, *args, **kwargs)
    assert state(adata) == before
    return str(raised.value)


def follow(message, adata, *args, **kwargs):
    """Do what the message says."""
    if passed := re.search(r"Pass `(.*?)`", message):
        return from_anndata(adata, *args, **kwargs | eval(f"dict({passed[1]})"))
    names = {"adata": adata, "numpy": np}
    exec(re.search(r"(?:[Ss]et|Remove them:) `(.*?)`", message)[1], names)
    return from_anndata(names["adata"], *args, **kwargs)


def lost_positions(adata):
    adata.obsm["spatial"][[3, 5]] = np.nan


def exchanged(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1] * [1, 3]


def in_columns(adata):
    xy = adata.obsm.pop("spatial")
    adata.obs["pxl_row_in_fullres"], adata.obs["pxl_col_in_fullres"] = xy[:, 1], xy[:, 0]


def with_depth(adata):
    adata.obsm["spatial"] = np.c_[adata.obsm["spatial"], np.zeros(adata.n_obs)]


def elsewhere(adata):
    adata.obsm["X_spatial"] = adata.obsm.pop("spatial")


def without_diameter(adata):
    del adata.uns["spatial"]["phantom"]["scalefactors"]["spot_diameter_fullres"]


LACKS = {
    "positions under another key": (elsewhere, "`spatial_key='spatial'` is not in `adata.obsm`"),
    "positions in columns": (in_columns, "`spatial_key='spatial'` is not in `adata.obsm`"),
    "positions of two spots": (lost_positions, "2 of 52 spots have none"),
    "two columns": (with_depth, "has the shape (52, 3)"),
    "diameter": (without_diameter, "`spot_diameter_px` is needed"),
}


@pytest.mark.parametrize("name", LACKS)
def test_what_is_missing_is_named_and_the_remedy_runs(phantom, name):
    change, says = LACKS[name]
    adata = as_read_by_scanpy(phantom)
    change(adata)
    message = refusal(adata)
    assert says in message
    obs = read_observation(follow(message, adata), "phantom_hires_image", bin_um=20.0)
    truth = read_observation(phantom, "phantom_hires_image", bin_um=20.0)
    kept = [truth.spots.index(spot) for spot in obs.spots]
    np.testing.assert_allclose(obs.measurement.centres, truth.measurement.centres[kept], atol=1e-2)
    assert len(kept) == (50 if "two spots" in name else 52) and obs.source.spot_um == 55


def test_a_smaller_copy_taken_for_the_image_is_recognised(phantom):
    adata = as_read_by_scanpy(phantom)
    adata.obsm["spatial"] = adata.obsm["spatial"] * 2  # most spots now lie off what is given
    adata.uns["spatial"]["phantom"]["scalefactors"] |= {"tissue_hires_scalef": 0.25, "spot_diameter_fullres": 44.0}
    adata.uns["spatial"]["phantom"]["images"].pop("lowres")
    message = refusal(adata, pixels(phantom, "hires"))
    assert "Pass `image_scale=0.25`" in message
    sdata = follow(message, adata, pixels(phantom, "hires"))
    same(
        read_observation(sdata, "phantom_full_image", bin_um=20.0),
        read_observation(sdata, "phantom_hires_image", bin_um=20.0),
        atol=1,
    )


def test_exchanged_axes_are_recognised(phantom):
    adata = as_read_by_scanpy(phantom)
    wide = np.concatenate([pixels(phantom)] * 4, 1)  # four times as wide as high
    adata.obsm["spatial"] = (adata.obsm["spatial"] + [600, 0])[:, ::-1]
    adata.uns = {}
    message = refusal(adata, wide, spot_diameter_px=22.0)
    sdata = follow(message, adata, wide, spot_diameter_px=22.0)
    assert list(sdata.images) == ["section_full_image"] and "They seem to be (y, x)" in message


def test_all_that_is_missing_is_said_at_once(phantom):
    adata = as_read_by_scanpy(phantom)
    adata.uns["spatial"]["phantom"] = {"metadata": {}}
    lost_positions(adata)
    message = refusal(adata, library_key="nowhere")
    assert "(2 problems)" in message and "`library_key='nowhere'`" in message and "2 of 52 spots" in message
    adata = as_read_by_scanpy(phantom)
    adata.uns["spatial"]["phantom"] = {"metadata": {}}
    message = refusal(adata)
    assert "`spot_diameter_px` is needed" in message and "`image` is needed" in message


@pytest.mark.parametrize("with_column", [True, False])
def test_several_libraries_need_an_argument_that_is_named(phantom, with_column):
    adata = two_libraries(phantom, with_column)
    message = refusal(adata)
    assert ("Pass `library_key='library'`" if with_column else "Pass `library_id='A 1'`") in message
    follow(message, adata)


def test_the_file_that_the_reader_noted_is_offered(phantom, tmp_path):
    adata = as_read_by_scanpy(phantom)
    entry = adata.uns["spatial"]["phantom"]
    entry["metadata"] = {"source_image_path": str(written(pixels(phantom), tmp_path / "he.tif"))}
    del entry["images"]
    assert "phantom_full_image" in follow(refusal(adata), adata)


@pytest.mark.parametrize("image", ["nowhere.tif", __file__, np.zeros((4, 5)), np.zeros(3), object(), 7])
def test_what_is_no_image_of_the_section_is_named(phantom, image):
    message = refusal(as_read_by_scanpy(phantom), image)
    assert "`image` needs the H&E" in message or "spots need to be on the full image" in message


@pytest.mark.parametrize("thing", [None, "section.h5ad", 3])
def test_what_is_no_anndata_is_named(thing):
    with pytest.raises(TypeError, match="`adata` needs an AnnData, but is of type"):
        from_anndata(thing)


# --- what is handed over instead of a SpatialData ---


def handed(thing):
    with pytest.raises(TypeError, match=r"^`sdata` needs a SpatialData, but is ") as raised:
        check_sdata(thing)
    return str(raised.value)


def made(message):
    import spatialdata_io

    import hadmst_sc

    names = {"anndata": anndata, "spatialdata": sd, "spatialdata_io": spatialdata_io, "hadmst_sc": hadmst_sc}
    return names, re.search(r"`(sdata = .*?)`", message)[1]


def test_an_anndata_is_made_a_spatialdata_by_the_remedy(phantom):
    adata = as_read_by_scanpy(phantom)
    names, code = made(handed(adata))
    names["sdata"] = adata
    exec(code, names)
    assert "phantom_hires_image" in names["sdata"]


@pytest.mark.parametrize("form", [str, Path])
def test_paths_are_read_by_the_remedy(phantom, form, tmp_path):
    pytest.importorskip("spatialdata_io")
    drawn = simulate(3, size_um=500.0, n_genes=3)
    phantom.write(tmp_path / "section.zarr")
    as_read_by_scanpy(phantom).write_h5ad(tmp_path / "section.h5ad")
    as_read_by_scanpy(phantom).write_zarr(tmp_path / "table.zarr")
    FOLDERS["visium"](tmp_path / "mouse" / "outs", drawn, 2)
    FOLDERS["visium"](tmp_path / "renamed", drawn, 1)
    counts = tmp_path / "renamed" / "filtered_feature_bc_matrix.h5"
    counts.rename(counts.with_name("B7_raw_feature_bc_matrix.h5"))
    expected = {
        "section.zarr": "phantom_full_image",
        "section.h5ad": "phantom_hires_image",
        "table.zarr": "phantom_hires_image",
        "mouse/outs": "mouse_hires_image",
        "mouse": "mouse_hires_image",
        "renamed": "B7_hires_image",
    }
    for path, image in expected.items():
        names, code = made(handed(form(tmp_path / path)))
        exec(code, names)
        assert image in names["sdata"], path


def test_a_folder_that_is_no_store_is_made_one_by_the_remedy(phantom, tmp_path, monkeypatch):
    pytest.importorskip("spatialdata_io")
    monkeypatch.chdir(tmp_path)
    FOLDERS["visium"](tmp_path / "mouse" / "outs", simulate(3, size_um=500.0, n_genes=3), 2)
    as_read_by_scanpy(phantom).write_zarr("table.zarr")
    for path, image in (("mouse/outs", "mouse_hires_image"), ("table.zarr", "phantom_hires_image")):
        with pytest.raises(ValueError, match="`path` needs a zarr store of SpatialData") as raised:
            open_store(Path(path))
        code = re.search(r"Make one: `(.*?)`", str(raised.value))[1]
        exec(code, made("`sdata = 0`")[0])
        written = re.search(r"write\('(.*?)'\)", code)[1]
        assert image in open_store(Path(written))
    with pytest.raises(ValueError, match="It is not a zarr store"):
        open_store(tmp_path)


def test_degrade_and_add_spots_name_what_they_need(phantom, tmp_path):
    as_read_by_scanpy(phantom).write_h5ad(tmp_path / "cells.h5ad")
    for thing, says in ((phantom, "cells.tables['table']"), (tmp_path / "cells.h5ad", "read_h5ad"), (None, "NoneType")):
        with pytest.raises(TypeError, match="`cells` needs an AnnData") as raised:
            pp.degrade(thing)
        assert says in str(raised.value)
    with pytest.raises(TypeError, match="`spots` needs an AnnData"):
        pp.add_spots(phantom, None, like="phantom")


def test_other_things_are_named(phantom, tmp_path):
    assert "is None" in handed(None) and "sdata = hadmst_sc.datasets.phantom()" in handed(None)
    assert "There is no such file or folder" in handed("nowhere.zarr")
    assert "not a zarr store" in handed(tmp_path)
    assert "`for section in sdata: ...`" in handed([phantom, phantom])
    assert "`for section in sdata.values(): ...`" in handed({"a": phantom})
    assert "of type DataFrame" in handed(pd.DataFrame())
    result = AnnData(np.ones((2, 2)), uns={"hadmst_sc": {}})
    assert "pass the SpatialData that contains it" in handed(result)


def test_columns_that_spatialdata_does_not_allow_are_renamed(phantom):
    adata = as_read_by_scanpy(phantom)
    adata.var["Gene name"], adata.obs["cell type/1"] = "x", 1
    table = from_anndata(adata)["table"]
    assert (table.var["Gene_name"] == "x").all() and (table.obs["cell_type_1"] == 1).all()
    assert "Gene name" in adata.var
