"""From a platform's own folder, through its reader of spatialdata-io, to maps that lie where the truth lies."""

from __future__ import annotations

import runpy
import warnings
from pathlib import Path

import numpy as np
import pytest
import spatialdata as sd

import hadmst_sc as hd
from hadmst_sc import metrics
from hadmst_sc.phantom.simulate import simulate

spatialdata_io = pytest.importorskip("spatialdata_io")
folders = runpy.run_path(str(Path(__file__).with_name("folders.py")))
SIZE_UM, N_GENES = 800.0, 4
SETTINGS = {"show_progress_bar": False, "gate": False, "align": False}


@pytest.fixture(scope="module")
def phantom():
    return simulate(3, size_um=SIZE_UM, n_genes=N_GENES, depth=(5.0, 40.0), misregistration_um=0.0, augment=False)


def read(reader, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the readers
        return getattr(spatialdata_io, reader)(*arguments, **options)


def agreement(sdata, phantom, glass: int = 0) -> np.ndarray:
    """Correlation over bins of 20 µm of each gene's map with the true rate, within so many bins of glass."""
    within = (..., slice(glass, -glass or None), slice(glass, -glass or None))
    found = np.asarray(sdata["superres"].data)[within]
    truth = phantom.rate.reshape(N_GENES, found.shape[1], 2, found.shape[2], 2).sum((2, 4))
    names = [str(name) for name in sdata["superres"].coords["c"].values]
    inside = np.asarray(sdata["superres_bins"].data)[within] > 0
    order = [list(phantom.observation.genes).index(name) for name in names]
    return metrics.pearson(found, truth[order], inside)


VISIUM = {
    "version 1": {"version": 1},
    "version 1, DLPFC": {"version": 1, "drawn_um": 70.1},
    "version 2": {"version": 2},
    "CytAssist 6.5 mm": {"version": 2, "drawn_um": 69.8, "cytassist": True},
    "CytAssist 11 mm": {"version": 2, "drawn_um": 60.1, "cytassist": True},
}


@pytest.mark.parametrize("counts", ["filtered", "raw"])
@pytest.mark.parametrize("name", VISIUM)
def test_visium(phantom, tmp_path, name, counts, caplog):
    folders["visium"](tmp_path, phantom, **VISIUM[name])
    file = f"{counts}_feature_bc_matrix.h5"
    sdata = read("visium", tmp_path, dataset_id="S1", fullres_image_file="he.tif", counts_file=file)
    hd.tl.superresolve(sdata, "S1_full_image", bin_um=20.0, model=None, **SETTINGS)
    assert np.median(agreement(sdata, phantom, glass=20)) > 0.8
    bins = np.asarray(sdata["superres_bins"].data) > 0
    assert bins[20:-20, 20:-20].mean() > 0.95 > 0.1 > bins.mean() - bins[20:-20, 20:-20].sum() / bins.size
    facts = sdata["superres_table"].uns["hadmst_sc"]
    assert facts["um_per_px"] == pytest.approx(2.5, rel=0.01)
    assert (facts["spot_um"], facts["pitch_um"], facts["n_spots"]) == (55.0, 100.0, len(phantom.observation.spots))
    assert (sdata["table"].n_obs > 2 * facts["n_spots"]) == (counts == "raw")
    assert ("have obs['in_tissue'] = 0" in caplog.text) == (counts == "raw")


def test_visium_hd_bins_as_low_resolution(phantom, tmp_path):
    folders["visium_hd"](tmp_path, phantom, 40)
    sdata = read("visium_hd", tmp_path, dataset_id="S1", load_segmentations_only=False)
    hd.tl.superresolve(sdata, "S1_full_image", table_key="square_040um", bin_um=20.0, **SETTINGS)
    assert np.median(agreement(sdata, phantom)) > 0.8


def test_visium_hd_bins_as_truth(phantom, tmp_path):
    """Small bins are summed to spots; what is found from those is scored against the bins."""
    folders["visium_hd"](tmp_path, phantom, 20)
    sdata = read("visium_hd", tmp_path, dataset_id="S1", load_segmentations_only=False)
    bins = sdata["square_020um"].copy()
    hd.pp.add_spots(sdata, hd.pp.degrade(bins, um_per_unit=2.5), like="S1_square_020um")
    hd.tl.superresolve(sdata, "S1_full_image", table_key="spots_table", bin_um=20.0, **SETTINGS)
    found = sdata["superres_table"]
    place = {tuple(xy): row for row, xy in enumerate(np.round(found.obsm["spatial"]).astype(int))}
    rows = [(place.get(tuple(xy)), i) for i, xy in enumerate(np.round(bins.obsm["spatial"]).astype(int))]
    ours, theirs = np.array([pair for pair in rows if pair[0] is not None]).T
    assert len(ours) > 0.9 * bins.n_obs
    maps = found[ours, bins.var_names].X
    pcc = [np.corrcoef(a, b)[0, 1] for a, b in zip(maps.T, bins.X.toarray()[theirs].T, strict=True)]
    assert np.median(pcc) > 0.6


@pytest.mark.parametrize(
    "turn", [np.eye(3), np.array([[0, -1, 3800], [1, 0, 0], [0, 0, 1.0]])], ids=["upright", "turned"]
)
def test_xenium_cells_as_truth_under_an_aligned_image(phantom, tmp_path, turn):
    folders["xenium"](tmp_path, phantom, turn)
    off = dict.fromkeys(("cells_boundaries", "nucleus_boundaries", "cells_labels", "nucleus_labels"), False)
    off |= dict.fromkeys(("transcripts", "morphology_mip", "morphology_focus"), False)
    sdata = read("xenium", tmp_path, cells_as_circles=True, **off)
    hd.pp.add_spots(sdata, hd.pp.degrade(sdata["table"]), like="cell_circles")
    hd.tl.superresolve(sdata, "he_image", table_key="spots_table", bin_um=20.0, **SETTINGS)
    assert np.median(agreement(sdata, phantom)) > 0.75


def test_stereoseq_bins(phantom, tmp_path):
    folders["stereoseq"](tmp_path, phantom, 80)
    sdata = read("stereoseq", tmp_path, dataset_id="S1.tissuecut")
    assert "bin80_table" in sdata.tables
    hd.tl.superresolve(sdata, "S1_regist", table_key="bin80_table", bin_um=20.0, **SETTINGS)
    assert sdata["superres_table"].uns["hadmst_sc"]["um_per_px"] == pytest.approx(0.5)
    assert np.median(agreement(sdata, phantom)) > 0.8


def test_dbit(phantom, tmp_path):
    folders["dbit"](tmp_path, phantom, 20)
    sdata = read("dbit", tmp_path, dataset_id="S1")
    hd.tl.superresolve(sdata, "S1_image", spot_um=40.0, pitch_um=40.0, bin_um=20.0, **SETTINGS)
    assert np.median(agreement(sdata, phantom)) > 0.8


def test_legacy_spatial_transcriptomics(tmp_path):
    """No reader: spots of 100 µm, 200 µm apart, are known by that ratio."""
    sdata = hd.datasets.phantom(3, n_genes=N_GENES, size_um=1600.0, spot_um=100.0, pitch_um=200.0, depth=(5.0, 40.0))
    sdata.write(tmp_path / "section.zarr")
    sdata = sd.read_zarr(tmp_path / "section.zarr")
    hd.tl.superresolve(sdata, "phantom_full_image", bin_um=20.0, **SETTINGS)
    assert sdata["superres_table"].uns["hadmst_sc"]["um_per_px"] == pytest.approx(2.5, rel=0.01)
