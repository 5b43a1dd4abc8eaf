"""Pictures of 100,000 bins take less than three seconds each, saved; `pytest -rP <this file>` prints the seconds."""

from __future__ import annotations

import time

import matplotlib.pyplot as plt
import pytest
from spatialdata.transformations import get_transformation

import hadmst_sc as hd

DRAW = {
    "superresolve": lambda sdata: hd.pl.superresolve(sdata)[0, 0],
    "uncertainty": lambda sdata: hd.pl.uncertainty(sdata)[0, 0],
    "compare": lambda sdata: hd.pl.compare(sdata, ["superres"])[0, 0],
    "reliability": lambda sdata: hd.pl.reliability(sdata)[0],
    "registration": lambda sdata: hd.pl.registration(sdata)[0],
}


@pytest.fixture(scope="module")
def large():
    sdata = hd.datasets.phantom(0, n_genes=3, size_um=3600.0)
    hd.tl.superresolve(sdata, "phantom_full_image", model=None, show_progress_bar=False)
    assert sdata["superres_table"].n_obs > 100_000
    std = sdata["superres"] * 0.5  # drawing does not ask where it came from
    std.attrs["transform"] = get_transformation(sdata["superres"], get_all=True)
    sdata.images["superres_std"] = std
    return sdata


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAW)
def test_a_picture_of_100_000_bins(large, name, tmp_path):
    seconds = float("inf")
    for _ in range(2):  # the first also loads fonts, and other work on the machine makes either slower
        started = time.process_time()
        DRAW[name](large).figure.savefig(tmp_path / "picture.png", dpi=150)
        seconds = min(seconds, time.process_time() - started)
        plt.close("all")
    print(f"pl.{name}: {seconds:.2f} s of CPU for {large['superres_table'].n_obs:,} bins")
    assert seconds < 3 * large["superres_table"].n_obs / 100_000
