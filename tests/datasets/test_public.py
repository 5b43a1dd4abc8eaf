"""Loaders of the public sections; those that need the data folder skip without it."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image
from scipy import sparse
from scipy.spatial import cKDTree
from spatialdata.transformations import get_transformation

from hadmst_sc import datasets
from hadmst_sc.datasets.public import observe_cells
from hadmst_sc.io import read_observation
from hadmst_sc.section.grid import Grid


def write_section(folder: Path) -> None:
    """A tiny DLPFC-like section in the form of the data folder."""
    (folder / "visium_dlpfc").mkdir()
    obs = pd.DataFrame(
        {"in_tissue": 1, "row": [0, 0, 1], "col": [0, 2, 1], "pxl_row": [1, 2, 3], "pxl_col": [4, 5, 6]},
        index=["a", "b", "c"],
    )
    table = AnnData(sparse.csr_matrix(np.arange(6, dtype=np.int32).reshape(3, 2)), obs=obs)
    table.var_names = ["MT", "MT"]
    table.obsm["spatial"] = np.array([[20.0, 10.0], [70.0, 10.0], [45.0, 53.3]])
    table.uns = {"he_mpp": 2.0, "spot_diameter_um": 55.0, "pitch_um": 100.0}
    table.write_h5ad(folder / "visium_dlpfc" / "151674.h5ad")
    pixels = np.zeros((80, 100, 4), np.uint8)
    pixels[10, 20] = (1, 2, 3, 255)  # row 10, column 20: under the first spot
    Image.fromarray(pixels).save(folder / "visium_dlpfc" / "151674_tissue_lowres_image.png")
    labels = "b\t151674\tL3\na\t151673\tL1\nc\t151674\tWM\n"
    (folder / "visium_dlpfc" / "layer_labels.tsv.gz").write_bytes(gzip.compress(labels.encode()))


@pytest.mark.filterwarnings("ignore:.*names are not unique")
def test_a_section_becomes_circles_of_true_size_counts_and_an_rgb_image(tmp_path, monkeypatch):
    write_section(tmp_path)
    monkeypatch.setenv("HADMST_DATA", str(tmp_path))
    name = "visium_dlpfc_151674"
    assert datasets.available() == [name]
    sdata = datasets.load(name)
    table, circles = sdata["table"], sdata[name]
    assert (circles.radius == 55 / 2 / 2.0).all()
    np.testing.assert_array_equal(np.c_[circles.geometry.x, circles.geometry.y], table.obsm["spatial"])
    assert list(circles.index) == list(table.obs["spot_id"])
    assert set(table.obs) == {"in_tissue", "array_row", "array_col", "layer", "spot_id", "region"}
    assert table.obs["layer"].astype(object).where(table.obs["layer"].notna(), None).tolist() == [None, "L3", "WM"]
    assert list(table.var_names) == ["MT", "MT-1"] and list(table.var["gene_ids"]) == ["MT", "MT"]
    assert np.issubdtype(table.X.dtype, np.integer) and table.X.sum() == 15
    image = sdata[f"{name}_full_image"]["scale0"]["image"]
    assert image.shape == (3, 80, 100)
    assert list(np.asarray(image.data)[:, 10, 20]) == [1, 2, 3]
    assert get_transformation(sdata[f"{name}_full_image"], name).to_affine_matrix(("x",), ("x",))[0, 0] == 1
    assert table.uns["spatial"][name]["metadata"] == {"spot_um": 55.0, "pitch_um": 100.0, "um_per_px": 2.0}


def test_a_missing_folder_or_file_says_what_to_set(tmp_path, monkeypatch):
    monkeypatch.setenv("HADMST_DATA", str(tmp_path / "nowhere"))
    for call in (
        datasets.available,
        lambda: datasets.load("her2st_C2"),
        lambda: datasets.load_cells("xenium_breast_crop"),
    ):
        with pytest.raises(FileNotFoundError, match=r"nowhere' is not a folder.*HADMST_DATA.*`data_dir="):
            call()
    with pytest.raises(FileNotFoundError, match=r"`name='her2st_C2'` needs the file 'her2st/C2.h5ad'"):
        datasets.load("her2st_C2", data_dir=tmp_path)
    assert datasets.available(tmp_path) == []


def test_an_unknown_name_lists_those_there_are(tmp_path):
    with pytest.raises(KeyError, match=r"`name='brain'` is not a section. Available: \['visium_mouse_brain'"):
        datasets.load("brain", data_dir=tmp_path)
    with pytest.raises(KeyError, match=r"Try `load_cells\('xenium_breast_crop'\)`"):
        datasets.load_cells("brain", data_dir=tmp_path)


def test_an_image_beyond_the_pixel_budget_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    write_section(tmp_path)
    monkeypatch.setattr("hadmst_sc.datasets.public._PIXEL_BUDGET", 7999)
    with pytest.raises(ValueError, match=r"needs at most 7,999 pixels, but has 100 × 80"):
        datasets.load("visium_dlpfc_151674", data_dir=tmp_path)


def test_cells_fall_into_the_bins_of_their_centres():
    cells = AnnData(sparse.csr_matrix(np.array([[1, 0], [2, 5], [4, 0], [8, 8]], np.int32)))
    cells.obsm["spatial"] = np.array([[0.0, 0.0], [7.9, 4.0], [8.0, 3.9], [-0.1, 1.0]])  # (x, y) in pixels
    binned = datasets.bin_cells(cells, Grid((2, 3), bin_um=10.0, px_per_bin=4.0))
    np.testing.assert_array_equal(binned[0], [[1, 0, 4], [0, 2, 0]])
    np.testing.assert_array_equal(binned[1], [[0, 0, 0], [0, 5, 0]])


def spacing_um(sdata, name: str) -> float:
    """Median distance of neighbouring spots by the image's µm per pixel."""
    xy = sdata["table"].obsm["spatial"]
    distance = cKDTree(xy).query(xy, k=7)[0][:, 1:]
    near = distance[distance < 1.25 * np.median(distance[:, 0])]
    return float(np.median(near)) * sdata["table"].uns["spatial"][name]["metadata"]["um_per_px"]


@pytest.mark.parametrize(
    ("name", "spots", "genes", "darker"),
    [
        ("visium_mouse_brain", 2698, 1597, 25),
        ("visium_dlpfc_151673", 3639, 7319, 35),
        ("xenium_breast_visium", 709, 18085, -5),  # tissue fills the image: spots are no darker than the rest
    ],
)
def test_public_sections_have_their_size_their_pitch_and_spots_on_tissue(data_dir, name, spots, genes, darker):
    if name not in datasets.available(data_dir):
        pytest.skip(f"{name} is not in the data folder")
    sdata = datasets.load(name, data_dir=data_dir)
    table = sdata["table"]
    assert table.shape == (spots, genes) and table.var_names.is_unique
    assert spacing_um(sdata, name) == pytest.approx(100, rel=0.02)
    green = np.asarray(sdata[f"{name}_full_image"]["scale0"]["image"].data)[1].astype(float)  # both stains absorb it
    x, y = table.obsm["spatial"].astype(int).T
    assert green.mean() - green[y, x].mean() > darker


@pytest.mark.parametrize("name", ["visium_mouse_brain", "visium_dlpfc_151673", "her2st_C2", "st_mob_1"])
def test_public_sections_are_read_without_naming_sizes(data_dir, name):
    if name not in datasets.available(data_dir):
        pytest.skip(f"{name} is not in the data folder")
    sdata = datasets.load(name, data_dir=data_dir)
    stated = sdata["table"].uns["spatial"][name]["metadata"]
    obs = read_observation(sdata, f"{name}_full_image", genes=1, bin_um=40.0)
    assert (obs.source.spot_um, obs.source.pitch_um) == (stated["spot_um"], stated["pitch_um"])
    # Spots placed by hand are 5 % closer than the array they were printed on.
    assert obs.grid.um_per_px == pytest.approx(stated["um_per_px"], rel=0.06)


def test_a_marker_of_the_choroid_plexus_peaks_in_the_lateral_ventricle(data_dir):
    """Mouse brain: Ttr is highest about pixel (x 1060, y 1030) of the 4.28 µm image, where the plexus is seen."""
    if "visium_mouse_brain" not in datasets.available(data_dir):
        pytest.skip("visium_mouse_brain is not in the data folder")
    table = datasets.load("visium_mouse_brain", data_dir=data_dir)["table"]
    ttr = table[:, "Ttr"].X.toarray().ravel()
    x, y = np.median(table.obsm["spatial"][np.argsort(ttr)[-20:]], axis=0)
    assert abs(x - 1060) < 40 and abs(y - 1030) < 60


def test_crop_cells_lie_on_the_spots_window_of_the_same_image(data_dir):
    if "xenium_breast_visium" not in datasets.available(data_dir):
        pytest.skip("xenium_breast is not in the data folder")
    cells = datasets.load_cells("xenium_breast_crop", data_dir=data_dir)
    spots = datasets.load("xenium_breast_visium", data_dir=data_dir)["table"]
    assert cells.shape == (17136, 313)
    um_per_px = spots.uns["spatial"]["xenium_breast_visium"]["metadata"]["um_per_px"]
    assert cells.uns["he_mpp"] == pytest.approx(um_per_px)
    gap = cKDTree(cells.obsm["spatial"]).query(spots.obsm["spatial"])[0] * um_per_px
    assert np.median(gap) < 20
    grid = Grid.over_image((690, 560), um_per_px, 40.0)
    binned = datasets.bin_cells(cells, grid)
    assert binned.sum() == cells.X.sum()


@pytest.mark.parametrize("pitch_um", [100.0, 50.0])
def test_simulated_spots_are_read_with_the_pitch_that_they_were_made_with(data_dir, pitch_um, monkeypatch):
    name = "merfish_mouse_hippocampus"
    if not (data_dir / name).is_dir():
        pytest.skip(f"{name} is not in the data folder")
    monkeypatch.setenv("HADMST_DATA", str(data_dir))
    obs, truth, _ = observe_cells(
        name, choose=lambda spots: list(spots.var_names[:2]), bin_um=10.0, spot_um=0.55 * pitch_um, pitch_um=pitch_um
    )
    assert obs.measurement.pitch * 10 == pytest.approx(pitch_um)
    assert obs.measurement.diameter * 10 == pytest.approx(0.55 * pitch_um)
    assert truth.shape[1:] == obs.grid.shape
