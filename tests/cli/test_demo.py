"""`hadmst-sc demo`, for real: the command that a new user runs first."""

from __future__ import annotations

import numpy as np
from matplotlib.image import imread
from spatialdata import read_zarr
from typer.testing import CliRunner

from hadmst_sc.cli import app


def test_demo_writes_a_store_that_opens_and_a_picture_and_does_not_overwrite(tmp_path):
    folder = tmp_path / "demo"
    command = ["demo", "--output", str(folder), "--n-genes", "3", "--device", "cpu"]
    first = CliRunner().invoke(app, command, catch_exceptions=False)
    assert first.exit_code == 0, first.stderr
    assert str(folder / "section.zarr") in first.stdout and str(folder / "superres.png") in first.stdout

    sdata = read_zarr(folder / "section.zarr")
    bins, inside = sdata.tables["superres_table"], np.asarray(sdata["superres_bins"].data) > 0
    hr = np.asarray(sdata["superres"].data)[:, inside]
    assert bins.n_vars == 3 and bins.n_obs == np.count_nonzero(inside)
    assert np.isfinite(hr).all() and hr.min() >= 0 and hr.max() > 0
    assert imread(folder / "superres.png")[..., :3].std() > 0.05  # an empty canvas is uniform

    second = CliRunner().invoke(app, command)
    assert second.exit_code == 2 and "--overwrite" in second.stderr
