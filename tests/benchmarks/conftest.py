"""Makes the benchmark modules importable, and a small section to try them on."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from hadmst_sc.section.grid import Grid
from hadmst_sc.section.measurement import discs
from hadmst_sc.section.observation import Observation

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))


@pytest.fixture(scope="session")
def make_section():
    """Section of 64 spots on 40 × 40 bins of 20 µm; ``rate(y, x)`` in bins gives ``(genes, ...)`` counts per bin."""

    def make(rate, *, noise: bool = False, seed: int = 0) -> Observation:
        rng = np.random.default_rng(seed)
        grid = Grid((40, 40), 20.0, 4.0)
        centres = np.indices((8, 8)).reshape(2, -1).T * 5.0 + 2.5
        measurement = discs(centres, 2.75, grid.shape)
        maps = np.array(rate(*(np.indices(grid.shape) + 0.5)), float)
        counts = (measurement.matrix @ maps.reshape(len(maps), -1).T).astype(np.float32)
        counts = rng.poisson(counts).astype(np.float32) if noise else counts
        fields = ndimage.gaussian_filter(rng.standard_normal((3, 80, 80)), (0, 2, 2))
        he = np.clip(170 + 150 * fields, 20, 240).astype(np.uint8)
        inside = np.ones(grid.shape, bool)
        inside[:, -2:] = measurement.coverage[:, -2:] > 0
        genes, spots = (tuple(f"{kind}{i}" for i in range(n)) for kind, n in (("g", len(maps)), ("s", len(centres))))
        return Observation(grid, he, 10.0, measurement, counts, genes, spots, inside)

    return make
