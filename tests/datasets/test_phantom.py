"""The phantom as SpatialData: the reader's structure, and the truth in its place."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image
from spatialdata import SpatialData, get_centroids, read_zarr
from spatialdata.transformations import get_transformation

from hadmst_sc import datasets
from hadmst_sc.datasets.visium import as_visium
from hadmst_sc.phantom.simulate import simulate

XY = ("x", "y")


@pytest.fixture(scope="module")
def sdata() -> SpatialData:
    return datasets.phantom()


def level(element: xr.DataTree | xr.DataArray) -> xr.DataArray:
    """The finest level of an image."""
    return next(iter(element["scale0"].ds.data_vars.values())) if isinstance(element, xr.DataTree) else element


def write_space_ranger(folder: Path, sdata: SpatialData) -> None:
    """The files of a Space Ranger run that ``spatialdata_io.visium`` reads, with the contents of ``sdata``."""
    table, spatial = sdata["table"], folder / "spatial"
    spatial.mkdir()
    scales = {
        f"tissue_{name}_scalef": float(get_transformation(sdata["phantom"], f"phantom_downscaled_{name}").scale[0])
        for name in ("hires", "lowres")
    }
    scales["spot_diameter_fullres"] = 2 * float(sdata["phantom"].radius.iloc[0])
    (spatial / "scalefactors_json.json").write_text(json.dumps(scales))
    for name in ("hires", "lowres"):
        pixels = np.moveaxis(np.asarray(sdata[f"phantom_{name}_image"].data), 0, -1)
        Image.fromarray(pixels).save(spatial / f"tissue_{name}_image.png")
    Image.fromarray(np.moveaxis(np.asarray(level(sdata["phantom_full_image"]).data), 0, -1)).save(folder / "full.png")
    positions = table.obs[["in_tissue", "array_row", "array_col"]].copy()
    positions["pxl_row_in_fullres"], positions["pxl_col_in_fullres"] = table.obsm["spatial"][:, ::-1].T
    positions.to_csv(spatial / "tissue_positions.csv", index_label="barcode")
    with h5py.File(folder / "phantom_filtered_feature_bc_matrix.h5", "w") as file:
        file.attrs["library_ids"] = np.array([b"phantom"])
        matrix = file.create_group("matrix")
        counts = table.X.tocsr()  # spots × genes by rows is genes × spots by columns
        for name in ("data", "indices", "indptr"):
            matrix[name] = getattr(counts, name).astype(np.int32)
        matrix["shape"] = np.array([table.n_vars, table.n_obs], np.int32)
        matrix["barcodes"] = table.obs_names.to_numpy().astype("S")
        columns = {"id": "gene_ids", "feature_type": "feature_types", "genome": "genome"}
        features = matrix.create_group("features")
        features["name"] = table.var_names.to_numpy().astype("S")
        for name, column in columns.items():
            features[name] = table.var[column].to_numpy().astype("S")


@pytest.mark.filterwarnings("ignore")
def test_structure_is_that_of_the_visium_reader(sdata, tmp_path):
    """Write the phantom as Space Ranger does, read it with spatialdata_io, and compare element by element."""
    reader = pytest.importorskip("spatialdata_io", reason="needs the extra `io`")
    write_space_ranger(tmp_path, sdata)
    read = reader.visium(tmp_path, fullres_image_file="full.png")
    ours = {name for _, name, _ in sdata.gen_elements()}
    assert {name for _, name, _ in read.gen_elements()} == ours - {"phantom_truth", "phantom_regions"}
    assert set(read.coordinate_systems) == set(sdata.coordinate_systems)
    for _, name, element in read.gen_spatial_elements():
        mine = sdata[name]
        assert type(mine) is type(element)
        theirs, own = get_transformation(element, get_all=True), get_transformation(mine, get_all=True)
        assert set(own) == set(theirs)
        for system in theirs:
            a, b = (t[system].to_affine_matrix(XY, XY) for t in (theirs, own))
            np.testing.assert_allclose(a, b, err_msg=f"{name} in {system}")
        if name in read.images:
            a, b = level(element), level(mine)
            assert (a.dims, a.dtype, list(a.coords["c"].values)) == (b.dims, b.dtype, list(b.coords["c"].values))
            np.testing.assert_array_equal(a.data, b.data)
            if isinstance(element, xr.DataTree):
                assert list(element.children) == list(mine.children)
                assert [level.ds.sizes for level in element.children.values()] == [
                    level.ds.sizes for level in mine.children.values()
                ]
    circles, mine = read["phantom"], sdata["phantom"]
    assert list(circles.columns) == list(mine.columns) and circles.index.equals(mine.index)
    assert circles.index.name == mine.index.name
    np.testing.assert_allclose(mine.get_coordinates(), circles.get_coordinates())
    np.testing.assert_allclose(mine.radius, circles.radius)
    theirs, own = read["table"], sdata["table"]
    assert own.uns["spatialdata_attrs"] == theirs.uns["spatialdata_attrs"]
    assert set(theirs.uns["spatial"]) == set(own.uns["spatial"]) == {"phantom"}
    assert (theirs.X != own.X).nnz == 0 and theirs.X.dtype == own.X.dtype
    np.testing.assert_allclose(theirs.obsm["spatial"], own.obsm["spatial"])
    pd.testing.assert_frame_equal(theirs.obs, own.obs[theirs.obs.columns], check_dtype=False, check_categorical=False)
    pd.testing.assert_frame_equal(theirs.var, own.var[theirs.var.columns], check_dtype=False)


def test_the_default_phantom_has_a_table_called_table_and_counts(sdata):
    assert list(sdata.tables) == ["table"]
    x = sdata["table"].X.toarray()
    assert x.shape[1] == 24 and (x == np.round(x)).all() and x.min() >= 0 and x.sum() > 1000
    assert set(sdata["table"].var["kind"]) >= {"region", "gradient", "sparse", "housekeeping", "hidden", "mixed"}


def test_the_truth_summed_over_spots_is_what_the_table_counted(sdata):
    """Through the coordinate systems alone: bins of the truth whose centres lie in a circle, scaled by its area."""
    truth, table = sdata["phantom_truth"], sdata["table"]
    assert list(truth.coords["c"].values) == list(table.var_names)
    to_system = get_transformation(truth, "phantom").to_affine_matrix(XY, XY)
    ny, nx = truth.sizes["y"], truth.sizes["x"]
    bins = np.stack([*np.meshgrid(np.arange(nx) + 0.5, np.arange(ny) + 0.5), np.ones((ny, nx))], -1).reshape(-1, 3)
    world = (bins @ to_system.T)[:, :2]
    xy = get_centroids(sdata["phantom"], "phantom").compute()[["x", "y"]].to_numpy()
    radius = sdata["phantom"].radius.to_numpy()
    within = np.linalg.norm(world[None] - xy[:, None], axis=2) <= radius[:, None]
    area = np.pi * radius[0] ** 2 / abs(np.linalg.det(to_system[:2, :2]))
    expected = (within / within.sum(1, keepdims=True)) @ truth.data.compute().reshape(len(truth), -1).T * area
    expected *= table.obs["efficiency"].to_numpy()[:, None]
    counts = table.X.toarray()
    rich = counts.mean(0) > 5
    r = [np.corrcoef(expected[:, g], counts[:, g])[0, 1] for g in np.flatnonzero(rich)]
    assert np.median(r) > 0.6
    assert counts.sum() / expected.sum() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("bin_um", [10.0, 20.0])
def test_truth_and_regions_cover_the_image_in_every_system(bin_um):
    sdata = datasets.phantom(1, n_genes=2, size_um=800, bin_um=bin_um)
    for system, image in (
        ("phantom", "full"),
        ("phantom_downscaled_hires", "hires"),
        ("phantom_downscaled_lowres", "lowres"),
    ):
        sides = []
        for name in (f"phantom_{image}_image", "phantom_truth", "phantom_regions"):
            element = level(sdata[name])
            corner = get_transformation(sdata[name], system).to_affine_matrix(XY, XY) @ [
                element.sizes["x"],
                element.sizes["y"],
                1,
            ]
            sides.append(corner[:2])
        np.testing.assert_allclose(sides, np.broadcast_to(sides[0], (3, 2)), rtol=1e-12)


def test_regions_are_zero_off_the_tissue_only():
    drawn = simulate(0, size_um=800, n_genes=2, misregistration_um=0.0)
    sdata = datasets.phantom(0, size_um=800, n_genes=2)
    labels = np.asarray(sdata["phantom_regions"].data)
    np.testing.assert_array_equal(labels, drawn.regions + 1)
    np.testing.assert_array_equal(np.asarray(sdata["phantom_truth"].data), drawn.rate)


def test_the_phantom_survives_disk(sdata, tmp_path):
    sdata.write(tmp_path / "phantom.zarr")
    back = read_zarr(tmp_path / "phantom.zarr")
    assert back["table"].uns["phantom"]["style"] == sdata["table"].uns["phantom"]["style"]
    np.testing.assert_array_equal(back["phantom_truth"].data.compute(), sdata["phantom_truth"].data.compute())
    np.testing.assert_array_equal(back["table"].X.toarray(), sdata["table"].X.toarray())
    assert list(back["table"].var["kind"]) == list(sdata["table"].var["kind"])


def test_reduced_images_have_exact_factors_where_the_size_is_no_multiple():
    drawn = simulate(0, size_um=600, n_genes=1, augment=False)
    image = drawn.observation.he[:, :237, :201]
    from hadmst_sc.datasets.visium import spot_table

    sdata = as_visium("odd", image, spot_table(drawn, 0), 22.0)
    assert level(sdata["odd_hires_image"]).shape == (3, 118, 100)
    scale = get_transformation(sdata["odd"], "odd_downscaled_hires").to_affine_matrix(XY, XY)
    np.testing.assert_allclose(scale, np.diag([0.5, 0.5, 1]))
    first = image[:, :2, :2].mean((1, 2))
    np.testing.assert_allclose(level(sdata["odd_hires_image"]).data[:, 0, 0], first, atol=0.5)


def test_unknown_names_of_the_package_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'phantoms'"):
        _ = datasets.phantoms
    assert {"phantom", "load", "available", "load_cells", "bin_cells"} <= set(dir(datasets))
