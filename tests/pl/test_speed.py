"""Pictures of 100,000 bins cost little more than matplotlib's own time; `pytest -rP <this file>` prints the seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
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


def seconds_of(draw: Callable[[], Figure], folder: Path) -> float:
    """Of processor time for a picture that is saved."""
    started = time.process_time()
    draw().savefig(folder / "picture.png", dpi=150)
    seconds = time.process_time() - started
    plt.close("all")
    return seconds


def bare(maps: np.ndarray) -> Figure:
    """Matplotlib alone: four maps of each of three genes, with their scales."""
    figure, axes = plt.subplots(3, 4, figsize=(13.6, 9.4), layout="constrained")
    for row, values in zip(axes, maps, strict=True):
        for ax in row:
            figure.colorbar(ax.imshow(values), ax=ax)
    return figure


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAW)
def test_a_picture_of_100_000_bins(large, name, tmp_path):
    maps = large["superres"].to_numpy()
    draws = [lambda: DRAW[name](large).figure, lambda: bare(maps)]
    # In turn, and as a ratio: machines differ, and a busy one slows both. A picture that is too slow is so every time.
    times = [[seconds_of(draw, tmp_path) for draw in draws] for _ in range(3)]
    seconds, least = min(times, key=lambda pair: pair[0] / pair[1])
    print(f"pl.{name}: {seconds:.2f} s of CPU for {large['superres_table'].n_obs:,} bins; bare maps: {least:.2f} s")
    assert seconds / least < 1.2
