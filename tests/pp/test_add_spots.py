"""Pseudo-spots lie where their cells lie, are known by their size, and replace nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import spatialdata as sd
from anndata import read_h5ad
from spatialdata.transformations import Scale, set_transformation

import hadmst_sc as hd
from hadmst_sc.section.errors import ContractError


@pytest.fixture
def section():
    """Circles in µm on an image in pixels of 2.5 µm: the transformation is needed."""
    sdata = hd.datasets.phantom(n_genes=2, size_um=900.0)
    circles = sdata["phantom"].copy()
    set_transformation(circles, Scale([0.4, 0.4], axes=("x", "y")), "phantom")
    circles["geometry"] = circles.geometry.affine_transform([2.5, 0, 0, 2.5, 0, 0])
    sdata.shapes["cells"] = circles
    cells = sdata["table"].copy()
    cells.obsm["spatial"] = cells.obsm["spatial"] * 2.5
    return sdata, cells


@pytest.mark.torch
def test_they_lie_on_their_cells_and_are_superresolved(section):
    sdata, cells = section
    spots = hd.pp.degrade(cells, spot_um=130.0, pitch_um=150.0)  # of no platform's ratio
    assert hd.pp.add_spots(sdata, spots, like="cells") == "spots_table"
    placed = sd.transform(sdata["spots"], to_coordinate_system="phantom")
    np.testing.assert_allclose(
        np.column_stack([placed.geometry.x, placed.geometry.y]), spots.obsm["spatial"] / 2.5, atol=1e-6
    )
    hd.tl.superresolve(
        sdata, "phantom_full_image", table_key="spots_table", model=None, bin_um=30.0, show_progress_bar=False
    )
    provenance = sdata["superres_table"].uns["hadmst_sc"]
    assert provenance["um_per_px"] == pytest.approx(2.5, rel=1e-3)
    assert "region" not in spots.obs  # the caller's spots are left alone


def test_names_that_are_taken_or_missing_are_reported(section):
    sdata, cells = section
    spots = hd.pp.degrade(cells, spot_um=130.0, pitch_um=150.0)
    with pytest.raises(KeyError, match=r"`like='nothing'` is not a spatial element\. Available: .*'cells'"):
        hd.pp.add_spots(sdata, spots, like="nothing")
    with pytest.raises(ValueError, match="would replace the element 'phantom_full_image'"):
        hd.pp.add_spots(sdata, spots, like="cells", key_added="phantom_full_image")
    with pytest.raises(ValueError, match="would replace the element 'cells'"):
        hd.pp.add_spots(sdata, spots, like="cells", key_added="cells")
    del spots.uns["pitch_um"]
    with pytest.raises(KeyError, match=r"`spots` lack .'pitch_um'."):
        hd.pp.add_spots(sdata, spots, like="cells")
    assert "spots" not in sdata


def test_spots_of_ones_own_are_not_replaced_and_those_of_an_earlier_call_are(section, tmp_path):
    sdata, cells = section
    spots = hd.pp.degrade(cells, spot_um=130.0, pitch_um=150.0)
    sdata.shapes["spots"] = sdata["phantom"].copy()
    with pytest.raises(ValueError, match=r"would replace the element 'spots'\. Pass another name"):
        hd.pp.add_spots(sdata, spots, like="cells")
    assert len(sdata["spots"]) == len(sdata["phantom"])
    assert hd.pp.add_spots(sdata, spots, like="cells", key_added="mine") == "mine_table"
    spots[:3].copy().write_h5ad(tmp_path / "spots.h5ad")
    hd.pp.add_spots(sdata, read_h5ad(tmp_path / "spots.h5ad", backed="r"), like="cells", key_added="mine")
    assert len(sdata["mine"]) == sdata["mine_table"].n_obs == 3


def many(cells):
    """More cells, between those of the section."""
    rng = np.random.default_rng(0)
    more = cells[rng.integers(0, cells.n_obs, 4000)].copy()
    low, high = cells.obsm["spatial"].min(0), cells.obsm["spatial"].max(0)
    more.obsm["spatial"] = rng.uniform(low, high, (4000, 2))
    more.obs_names_make_unique()
    return more


def test_their_size_outlasts_new_names_and_concatenation(section):
    """30 and 50 µm have the ratio of Visium's 55 and 100."""
    sdata, cells = section
    hd.pp.add_spots(sdata, hd.pp.degrade(many(cells), spot_um=30.0, pitch_um=50.0), like="cells")
    image, section = "phantom_full_image", sdata.subset(["phantom_full_image", "spots", "spots_table"])

    def um_per_px(sdata, image, table):
        return hd.io.read_observation(sdata, image, table_key=table).grid.um_per_px

    assert um_per_px(section, image, "spots_table") == pytest.approx(2.5, rel=1e-3)
    for one_table, table in ((True, "spots_table"), (False, "spots_table-a")):
        both = sd.concatenate({"a": section, "b": sd.deepcopy(section)}, concatenate_tables=one_table)
        assert um_per_px(both, f"{image}-a", table) == pytest.approx(2.5, rel=1e-3)


def test_sizes_that_contradict_each_other_are_told(section):
    sdata, cells = section
    hd.pp.add_spots(sdata, hd.pp.degrade(many(cells), spot_um=30.0, pitch_um=50.0), like="cells")
    table = sdata["spots_table"]
    sizes = {name: {"metadata": {"spot_um": size, "pitch_um": 50.0}} for name, size in (("a", 30.0), ("b", 40.0))}
    table.uns["spatial"] = sizes
    del table.obs["spot_um"], table.obs["pitch_um"]
    with pytest.raises(ContractError, match=r"states several sizes of spots.*Pass `spot_um=` and `pitch_um=`"):
        hd.io.read_observation(sdata, "phantom_full_image", table_key="spots_table")
    found = hd.io.read_observation(sdata, "phantom_full_image", table_key="spots_table", spot_um=30.0, pitch_um=50.0)
    assert found.grid.um_per_px == pytest.approx(2.5, rel=1e-3)  # the remedy
