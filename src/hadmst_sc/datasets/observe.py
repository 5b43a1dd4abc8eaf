"""Public sections as arrays, for training with held-out spots and for benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from anndata import AnnData

from hadmst_sc.datasets.public import bin_cells, image_of_cells, load, load_cells
from hadmst_sc.datasets.visium import as_visium
from hadmst_sc.section.observation import Observation

BLANK_UM = 10.0  # µm per pixel of the grey image that replaces a missing one


def observe(name: str, *, genes: Sequence[str] | None = None, bin_um: float = 20.0) -> Observation:
    """Read a section of :func:`~hadmst_sc.datasets.load`; all genes if ``genes`` is ``None``."""
    from hadmst_sc.io.read import read_observation

    sdata = load(name)
    genes = sdata.tables["table"].var_names.tolist() if genes is None else list(genes)
    return read_observation(sdata, f"{name}_full_image", genes=genes, bin_um=bin_um)


def observe_cells(
    name: str,
    *,
    choose: Callable[[AnnData], list[str]] | None = None,
    bin_um: float = 20.0,
    spot_um: float = 55.0,
    pitch_um: float = 100.0,
    random_state: int = 0,
) -> tuple[Observation, np.ndarray, AnnData]:
    """Pseudo-spots from one half of the molecules of a section, and the other half in bins.

    Parameters
    ----------
    name
        As in :func:`~hadmst_sc.datasets.load_cells`. Of ``xenium_breast_rep1`` only the cells for training are used.
    choose
        Function that selects names of genes, given the pseudo-spots; ``None`` = all.
    bin_um
        Edge of a bin.
    spot_um, pitch_um
        Diameter of the spots, and distance between their centres, µm.
    random_state
        Seed of the split of the molecules.

    Returns
    -------
    The section; ``(genes, ny, nx)`` counts per bin that are not in its spots; the cells with these counts, in pixels of
    the section's image.
    """
    from hadmst_sc.io.read import read_observation
    from hadmst_sc.pp.degrade import degrade

    cells = load_cells(name)
    if "split" in cells.obs:
        cells = cells[cells.obs["split"] == "train"].copy()
    um = float(cells.uns["he_mpp"])
    pixels = image_of_cells(name)
    if pixels is None:
        pixels, um = _blank(cells, um)
    options = {"spot_um": spot_um, "pitch_um": pitch_um, "um_per_unit": um, "random_state": random_state}
    spots, rest = degrade(cells, split=0.5, **options)
    genes = choose(spots) if choose else spots.var_names.tolist()
    sdata = as_visium("simulated", pixels, spots, spots.uns["spot_diameter_um"] / um)
    obs = read_observation(sdata, "simulated_full_image", genes=genes, bin_um=bin_um)
    return obs, bin_cells(rest[:, genes], obs.grid), rest


def _blank(cells: AnnData, um: float) -> tuple[np.ndarray, float]:
    """Grey image for cells that have none; their positions are converted to its pixels, in place."""
    at = cells.obsm["spatial"] * um
    cells.obsm["spatial"] = (at - at.min(0)) / BLANK_UM
    width, height = np.ceil(np.ptp(at, axis=0) / BLANK_UM).astype(int) + 1
    return np.full((3, height, width), 200, np.uint8), BLANK_UM
