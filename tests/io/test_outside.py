"""Bins outside the tissue: NaN in images, zero in arrays, no row in the table. Share of a bin under spots."""

from __future__ import annotations

import runpy
from dataclasses import replace
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from spatialdata import get_pyramid_levels

from hadmst_sc.io import as_spatialdata, read_observation, write_prediction
from hadmst_sc.io.maps import MapStore, StaleError
from hadmst_sc.tl import predict

HELPERS = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
visium_section, stand_in = (HELPERS[name] for name in ("visium_section", "stand_in"))


@pytest.fixture(scope="module")
def section():
    """A section whose tissue is a ring, whatever the detection of tissue makes of its image."""
    sdata = visium_section()
    obs = read_observation(sdata, "S1_full_image", bin_um=20.0, genes=["gene-2", "gene-0"])
    y, x = np.indices(obs.grid.shape) + 0.5
    radius = np.hypot(y - 40, x - 32)
    inside = (radius < 30) & (radius > 8)
    whole = obs.measurement.matrix @ inside.ravel() >= obs.measurement.area - 1e-6
    return sdata, replace(obs.subset_spots(whole), inside=inside)


def test_images_are_nan_outside_the_tissue_and_the_prediction_is_zero_there(section, tmp_path):
    sdata, obs = section
    found = predict(obs, model=None, align=False)
    outside = ~obs.inside
    assert 0.2 < outside.mean() < 0.8 and (found.mean[:, outside] == 0).all()
    new = as_spatialdata(sdata, found, obs.source)
    new.write(tmp_path / "new.zarr")
    for one in (new, sd.read_zarr(tmp_path / "new.zarr")):
        maps, table = np.asarray(one["superres"].data), one["superres_table"]
        assert np.isnan(maps[:, outside]).all()
        np.testing.assert_array_equal(maps[:, obs.inside], found.mean[:, obs.inside])
        np.testing.assert_allclose(one["superres"].sum(("y", "x")), table.X.sum(0), rtol=1e-5)  # xarray leaves NaN out


def test_a_map_store_has_no_files_where_there_is_no_tissue_and_reads_zero_there(tmp_path):
    store = MapStore.open(tmp_path / "maps", "key", (2, 1030, 8), with_std=True)
    maps = np.full((2, 3, 4), 2.0, np.float32)
    maps[:, 1, 1] = np.nan
    store.write(np.arange(2), (slice(0, 3), slice(2, 6)), maps, maps / 2, {0: {}, 1: {}})
    chunks = [path for path in (store.path / "maps.zarr").rglob("c/*/*/*") if path.is_file()]
    assert len(chunks) == 4 and {path.parent.name for path in chunks} == {"0"}
    expected = np.zeros((2, 1030, 8), np.float32)
    expected[:, :3, 2:6] = np.nan_to_num(maps)
    for one, factor in zip(store.maps(), (1, 0.5), strict=True):
        np.testing.assert_array_equal(one.compute(), factor * expected)


@pytest.mark.parametrize("lazy", [False, True])
def test_coarser_levels_are_means_of_the_tissue_alone(section, lazy, monkeypatch):
    sdata, obs = section
    monkeypatch.setattr("hadmst_sc.io.elements.PYRAMID_FROM", 20)
    maps = np.where(obs.inside, np.float32(3), np.float32(0))[None]
    found = replace(
        stand_in(obs.subset_genes(np.array([0])), with_std=False), mean=da.from_array(maps) if lazy else maps
    )
    levels = list(get_pyramid_levels(as_spatialdata(sdata, found, obs.source)["superres"]))
    assert [level.shape for level in levels] == [(1, 80, 64), (1, 40, 32), (1, 20, 16)]
    for level in levels:
        step = 80 // level.sizes["y"]
        tissue = obs.inside.reshape(80 // step, step, 64 // step, step).any((1, 3))
        np.testing.assert_array_equal(np.asarray(level.data)[0], np.where(tissue, 3, np.nan))


def test_covered_is_the_share_under_spots_and_measured_is_more_than_half(section):
    sdata, obs = section
    found = predict(obs, model=None, align=False)
    write_prediction(sdata, found, obs.source, key_added="shares")
    rows = sdata["shares_table"].obs
    share = obs.measurement.coverage[rows["array_row"], rows["array_col"]]
    assert rows["covered"].dtype == np.float32
    np.testing.assert_allclose(rows["covered"], share, atol=1e-6)
    np.testing.assert_array_equal(rows["measured"], rows["covered"] > 0.5)
    # A spot of 55 µm has the area of 5.94 bins of 20 µm.
    assert rows["covered"].sum() == pytest.approx(len(obs.spots) * np.pi * 27.5**2 / 400, rel=1e-4)
    assert (rows["covered"][~rows["measured"]] > 0).any()


def test_maps_of_a_run_that_has_ended_do_not_reach_the_next_one(tmp_path):
    """A worker can outlive its run, and write when a run with other parameters has begun in the same folder."""
    maps, box = np.ones((1, 4, 4), np.float32), (slice(0, 4), slice(0, 4))
    old = MapStore.open(tmp_path / "maps", "one run", (1, 4, 4), with_std=False)
    new = MapStore.open(tmp_path / "maps", "another", (1, 4, 4), with_std=False)
    with pytest.raises(StaleError, match="belongs to another run"):
        old.write(np.arange(1), box, maps, None, {0: {}})
    assert not new.finished
    new.write(np.arange(1), box, 2 * maps, None, {0: {}})
    np.testing.assert_array_equal(new.maps()[0].compute(), 2 * maps)
