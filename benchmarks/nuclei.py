"""Nuclei found in phantoms whose cells are known, at several resolutions: `python benchmarks/nuclei.py`.

The phantoms are those of the other tasks, painted anew at a fine resolution, with the stain colours and the folds of a
random slide.
"""

from __future__ import annotations

import argparse
from unittest import mock

import numpy as np
import records
import xarray as xr
from frame import Measurement, Record, Row, grouped, rounded, shown
from scipy import ndimage
from scipy.spatial import cKDTree

from hadmst_sc.phantom import render as painter
from hadmst_sc.phantom.cells import Cells, draw_cells
from hadmst_sc.phantom.fields import LAYOUT_UM
from hadmst_sc.phantom.tissue import draw_layout
from hadmst_sc.pp.find_nuclei import nuclei
from hadmst_sc.section.grid import Grid, area_weights
from hadmst_sc.section.measurement import discs
from hadmst_sc.section.observation import Observation

STYLES = ("voronoi", "glands", "nests", "vessels", "layers", "rings")
FIRST_SEED = 990_100
SIZE_UM, BIN_UM = 800.0, 10.0
WITHIN_UM = 3.0  # a nucleus is found if one lies this near
FINE_UM = 0.5
RESOLUTIONS_UM = (0.5, 1.0)
NOISE = 0.02


def paint(seed: int, style: str) -> tuple[np.ndarray, Cells, np.ndarray]:
    """Image ``(3, side, side)`` uint8 at ``FINE_UM`` per pixel, cells, and tissue on the lattice of the layout."""
    rng = np.random.default_rng(seed)
    layout = draw_layout(rng, round(SIZE_UM / LAYOUT_UM), style, augment=False)
    cells = draw_cells(rng, layout, "partial")
    with mock.patch.multiple(painter, PX_UM=FINE_UM, _SCALE=round(LAYOUT_UM / FINE_UM)):
        light = painter._slide(rng, painter._stains(rng, layout, cells, "partial"))
    light = ndimage.gaussian_filter(light, (0.6, 0.6, 0)) + NOISE * rng.standard_normal(light.shape)
    return np.moveaxis((np.clip(0.96 * light, 0, 1) * 255 + 0.5).astype(np.uint8), -1, 0), cells, layout.tissue


def coarser(image: np.ndarray, step: int) -> np.ndarray:
    """The image averaged over squares of pixels."""
    c, ny, nx = image.shape
    return (image.reshape(c, ny // step, step, nx // step, step).mean((2, 4)) + 0.5).astype(np.uint8)


def section(image: np.ndarray, tissue: np.ndarray) -> Observation:
    """A section of one spot around the image: what finding nuclei needs of an observation."""
    n = round(SIZE_UM / BIN_UM)
    weights = area_weights(n, BIN_UM / LAYOUT_UM, n)
    inside = (weights @ (weights @ tissue.astype(float)).T).T >= 0.5
    pixels = coarser(image, round(2.5 / FINE_UM))
    spot = discs(np.array([[n / 2, n / 2]]), 5.5, (n, n))
    counts = np.ones((1, 1), np.float32)
    return Observation(Grid((n, n), BIN_UM, BIN_UM / FINE_UM), pixels, FINE_UM, spot, counts, ("g",), ("s",), inside)


def f1(found: np.ndarray, true: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1 of points in µm; each true nucleus is found once."""
    pairs = cKDTree(found).sparse_distance_matrix(cKDTree(true), WITHIN_UM, output_type="coo_matrix")
    taken_found, taken_true = set(), set()
    for k in np.argsort(pairs.data, kind="stable"):
        i, j = int(pairs.row[k]), int(pairs.col[k])
        if i not in taken_found and j not in taken_true:
            taken_found.add(i), taken_true.add(j)
    hits = len(taken_true)
    precision, recall = hits / max(len(found), 1), hits / max(len(true), 1)
    return precision, recall, 2 * hits / max(len(found) + len(true), 1)


def of_phantom(seed: int, style: str, um: float) -> Row:
    """Scores of one phantom at one resolution."""
    image, cells, tissue = paint(seed, style)
    obs = section(image, tissue)
    level = xr.DataArray(coarser(image, round(um / FINE_UM)), dims=("c", "y", "x"), coords={"c": ["r", "g", "b"]})
    table = nuclei(level, um, obs, style)
    true = cells.position_um
    at = np.minimum((true / BIN_UM).astype(int), np.array(obs.inside.shape) - 1)
    true = true[obs.inside[tuple(at.T)]]
    precision, recall, score = f1(table[["y", "x"]].to_numpy() * um, true)
    row = {"style": style, "um_per_px": um, "nuclei": len(true)}
    return row | rounded({"precision": precision, "recall": recall, "f1": score}, 4)


def measure(options: argparse.Namespace) -> Record:
    plan = [(um, k, style) for um in RESOLUTIONS_UM for k in range(options.seeds) for style in STYLES]
    rows = shown(of_phantom(FIRST_SEED + 10 * k + STYLES.index(style), style, um) for um, k, style in plan)
    return {"rows": rows}


def render(found: Record) -> str:
    """The page."""
    lines = []
    for (um, style), rows in grouped(found["rows"], "um_per_px", "style").items():
        lines.append([f"{um:g}", style, *_means(rows)])
    for (um,), rows in grouped(found["rows"], "um_per_px").items():
        lines.append([f"{um:g}", "all", *_means(rows)])
    header = ["µm per pixel", "style", "nuclei", "precision", "recall", "F1"]
    about = f"A nucleus is found if one lies within {WITHIN_UM:g} µm; each is found once."
    return records.page(found, "# Nuclei found in phantoms", about, records.table(header, lines))


def _means(rows: list[Row]) -> list[str]:
    mean = {key: float(np.mean([row[key] for row in rows])) for key in ("nuclei", "precision", "recall", "f1")}
    return [f"{mean['nuclei']:.0f}", *(f"{mean[key]:.3f}" for key in ("precision", "recall", "f1"))]


NUCLEI = Measurement("nuclei", __doc__, measure, render, weights=None)

if __name__ == "__main__":
    NUCLEI.main()
