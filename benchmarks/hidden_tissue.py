"""Spots hidden before a section is read: is their area still tissue? And do lumina of phantoms stay glass?

A quarter of the spots is removed from the SpatialData object itself, four times, as in the task ``holdout``.
"""

from __future__ import annotations

import argparse

import numpy as np
import records
from cases.holdout import footprints, split
from cases.phantom import phantom_plan
from frame import Measurement, Record
from scipy.ndimage import binary_opening, label
from skimage.morphology import disk

from hadmst_sc.datasets.public import available, load
from hadmst_sc.io.tissue import detect_tissue
from hadmst_sc.phantom.simulate import simulate

LUMEN_UM = 100.0  # least width of a lumen that is judged


def tissue_of(name: str) -> dict[str, float]:
    """Area of the hidden spots in tissue, and share of them that lie mostly outside, over all folds."""
    whole, parts, fold = split(name, tuple(map(str, load(name).tables["table"].var_names[:3])), 20.0)
    inside = []
    for k, part in enumerate(parts):
        spots = footprints(whole, part, np.flatnonzero(fold == k))
        inside.append(spots.matrix @ part.inside.ravel().astype(float) / spots.area)
    share = np.concatenate(inside)
    return {"in_tissue": float(share.mean()), "mostly_outside": float((share < 0.5).mean()), "n_spots": len(share)}


def glass_of_phantoms(n_per_set: int) -> dict[str, float]:
    """Share of the glass of phantoms that stays glass: in lumina wider than 100 µm; and of tissue that stays tissue."""
    kept, tissue, n_lumina = [], [], 0
    for _, seed, style in phantom_plan(n_per_set):
        drawn = simulate(seed, style=style, size_um=1500.0, n_genes=24, misregistration_um=0.0)
        obs, glass = drawn.observation, drawn.regions < 0
        parts, _ = label(glass)
        border = np.unique(np.r_[parts[0], parts[-1], parts[:, 0], parts[:, -1]])
        radius = round(LUMEN_UM / 2 / obs.grid.bin_um)
        wide = binary_opening(np.pad(glass, 2 * radius, mode="edge"), disk(radius))
        wide = wide[2 * radius : -2 * radius, 2 * radius : -2 * radius]
        lumina = wide & ~np.isin(parts, border) & (obs.measurement.coverage == 0)
        inside = detect_tissue(obs.he, obs.grid, obs.measurement, 100.0, obs.counts.sum(1))
        n_lumina += len(np.unique(parts[lumina]))
        kept.append(~inside[lumina])
        tissue.append(inside[~glass].mean())
    return {"glass": float(np.concatenate(kept).mean()), "n_lumina": n_lumina, "tissue": float(np.mean(tissue))}


def measure(options: argparse.Namespace) -> Record:
    names = options.sections or [name for name in available() if not name.startswith("xenium")]
    return {"sections": {name: tissue_of(name) for name in names}, "phantoms": glass_of_phantoms(options.phantoms)}


def render(found: Record) -> str:
    """The page."""
    rows = [
        [name, f"{one['in_tissue']:.3f}", f"{one['mostly_outside']:.1%}", str(one["n_spots"])]
        for name, one in found["sections"].items()
    ]
    glass = found["phantoms"]
    return records.page(
        found,
        "# Tissue of spots that were hidden before reading",
        records.table(["section", "area in tissue", "mostly outside", "spots"], rows),
        f"Lumina of phantoms wider than 100 µm ({glass['n_lumina']} of them): {glass['glass']:.3f} of their glass "
        f"stays glass. {glass['tissue']:.3f} of the tissue stays tissue.",
    )


TISSUE = Measurement("hidden_tissue", __doc__, measure, render, weights=None)

if __name__ == "__main__":
    TISSUE.main()
