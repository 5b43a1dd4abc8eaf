"""`hadmst-sc demo`, for real: the command that a new user runs first; and what can be done with its store."""

from __future__ import annotations

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile
from matplotlib.image import imread
from spatialdata import read_zarr
from typer.testing import CliRunner

from hadmst_sc.cli import app


def run(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The output of the demo."""
    folder = tmp_path_factory.mktemp("demo") / "demo"
    first = run("demo", "--output", folder, "--n-genes", "3", "--device", "cpu")
    assert first.exit_code == 0, first.stderr
    assert str(folder / "section.zarr") in first.stdout and str(folder / "superres.png") in first.stdout
    return folder


def test_demo_writes_a_store_that_opens_and_a_picture_and_does_not_overwrite(folder):
    sdata = read_zarr(folder / "section.zarr")
    bins, inside = sdata.tables["superres_table"], np.asarray(sdata["superres_bins"].data) > 0
    hr = np.asarray(sdata["superres"].data)[:, inside]
    assert bins.n_vars == 3 and bins.n_obs == np.count_nonzero(inside)
    assert np.isfinite(hr).all() and hr.min() >= 0 and hr.max() > 0
    assert imread(folder / "superres.png")[..., :3].std() > 0.05  # an empty canvas is uniform

    second = run("demo", "--output", folder, "--n-genes", "3", "--device", "cpu")
    assert second.exit_code == 2 and "--overwrite" in second.stderr


def test_its_result_is_exported_and_drawn(folder, tmp_path):
    store = folder / "section.zarr"
    sdata = read_zarr(store)
    gene, *_ = sdata["superres_table"].var_names
    assert run("export", store, tmp_path / "maps.ome.tif", "--genes", gene).exit_code == 0
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "maps.ome.tif"), sdata["superres"].data[0].compute())
    assert run("export", store, tmp_path / "bins.csv.gz").exit_code == 0
    assert len(pd.read_csv(tmp_path / "bins.csv.gz")) == sdata["superres_table"].n_obs
    again = run("export", store, tmp_path / "bins.csv.gz")
    assert again.exit_code == 2 and "--overwrite" in again.stderr
    assert run("plot", store, tmp_path / "one.png", "--genes", gene).exit_code == 0
    assert imread(tmp_path / "one.png")[..., :3].std() > 0.05
    assert run("plot", store, tmp_path / "one.png").exit_code == 2


def test_its_regions_are_exported_as_cells(folder, tmp_path):
    store = folder / "section.zarr"
    told = run("cells", store, "phantom_regions", tmp_path / "cells.geojson")
    assert told.exit_code == 0, told.stderr
    assert run("cells", store, "phantom_regions", tmp_path / "cells.h5ad").exit_code == 0
    table = ad.read_h5ad(tmp_path / "cells.h5ad")
    features = json.loads((tmp_path / "cells.geojson").read_text())["features"]
    assert len(features) == table.n_obs > 1 and f"wrote {table.n_obs} cells" in told.stdout
    values = [one["properties"]["measurements"][table.var_names[0]] for one in features]
    np.testing.assert_array_equal(np.array(values, np.float32), table.X[:, 0])
