"""Pseudo-spots from high-resolution data: the counts that Visium would have measured, with known truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.spatial import cKDTree

from hadmst_sc.io.given import check_anndata
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.arguments import SEED, Requirement, is_pair, number, optional, positive
from hadmst_sc.section.errors import Problems

MAX_PLACES = 10**7  # points of the lattice


ARGUMENTS: dict[str, tuple[Requirement, Any]] = {
    "spot_um": (positive(), 55.0),
    "pitch_um": (positive(), 100.0),
    "um_per_unit": (positive(), 1.0),
    "split": (optional(number(1e-6, 1 - 1e-6, text="a share between 0 and 1")), 0.5),
    "random_state": (SEED, 0),
    "origin": (optional(Requirement("a point (x, y)", is_pair)), None),
}


@usual_errors
def degrade(
    cells: AnnData,
    *,
    spot_um: float = 55.0,
    pitch_um: float = 100.0,
    um_per_unit: float = 1.0,
    split: float | None = None,
    random_state: int = 0,
    origin: tuple[float, float] | None = None,
) -> AnnData | tuple[AnnData, AnnData]:
    """Sum cells (or bins) within discs on a hexagonal lattice, as Visium does.

    If the spots are summed from the same molecules that a method is scored on, copying their noise is rewarded. Pass
    ``split`` to score on molecules that are not in the spots.

    Parameters
    ----------
    cells
        Counts, cells × genes, with centres as (x, y) in ``obsm["spatial"]``. A cell belongs to the spot that contains
        its centre.
    spot_um, pitch_um
        Diameter of the spots, and distance between their centres, µm.
    um_per_unit
        µm per unit of ``obsm["spatial"]``.
    split
        Share of the molecules, drawn independently, that goes to the spots; ``None`` = all.
    random_state
        Seed of the split.
    origin
        (x, y) of the centre of one spot, in units of ``obsm["spatial"]``; ``None`` puts the first spot into the corner
        of the cells' extent.

    Returns
    -------
    Spots × genes, float32 whole numbers: every spot that is entirely within the cells' extent and has a cell, with
    ``array_row``, ``array_col`` (in half pitches) and ``n_cells`` in ``obs``, centres in the cells' own units in
    ``obsm["spatial"]``, and ``spot_diameter_um``, ``pitch_um`` and ``um_per_unit`` in ``uns``. With ``split`` also a
    copy of ``cells`` with all other molecules in ``X``.

    Raises
    ------
    KeyError
        If ``cells`` have no ``obsm["spatial"]``.
    ValueError
        If an argument has a bad value, ``cells.X`` holds no counts, or no spot has a cell.

    Examples
    --------
    >>> from anndata import AnnData
    >>> rng = np.random.default_rng(0)
    >>> places_um = rng.uniform(0, 500, (2000, 2))
    >>> cells = AnnData(rng.poisson(1.0, (2000, 5)), obsm={"spatial": places_um})
    >>> spots, truth = hd.pp.degrade(cells, split=0.5)
    >>> spots.shape, truth.shape
    ((27, 5), (2000, 5))
    """
    check_anndata(cells, "cells")
    _check_options(spot_um, pitch_um, um_per_unit, split, random_state, origin)
    xy_um = _positions(cells) * um_per_unit
    counts = _counts(cells)
    kept = counts
    if split is not None:
        kept = counts.copy()
        kept.data = np.random.default_rng(random_state).binomial(counts.data, split)
    first = xy_um.min(0) + spot_um / 2 if origin is None else np.asarray(origin, float) * um_per_unit
    n_places = float(np.prod(np.ptp(xy_um, axis=0) / pitch_um + 1))
    if n_places > MAX_PLACES:
        raise ValueError(
            f"`pitch_um` needs to give at most {MAX_PLACES:,} spots on the cells' extent, but {pitch_um:g} gives "
            f"{n_places:.2g}. Pass `pitch_um=100.0`, or another `um_per_unit=` (now {um_per_unit:g})."
        )
    centres, index, place = _spots(xy_um, spot_um, pitch_um, first)
    if not len(centres):
        extent = " × ".join(f"{side:.4g}" for side in np.ptp(xy_um, axis=0))
        raise ValueError(
            f"`cells` need to be in at least one spot of {spot_um:g} µm, but the {cells.n_obs:,} cells, on {extent} "
            f"µm, are in none. Their positions may not be in µm. Pass `um_per_unit=` (now {um_per_unit:g})."
        )
    n_cells = np.diff(place.indptr)
    obs = pd.DataFrame(
        {"in_tissue": 1, "array_row": index[:, 0], "array_col": index[:, 1], "n_cells": n_cells},
        index=[f"spot_{row:03d}_{column:03d}" for row, column in index],
    )
    spots = AnnData((place @ kept).astype(np.float32), obs=obs, var=cells.var.copy())
    spots.obsm["spatial"] = centres / um_per_unit
    spots.uns = {"spot_diameter_um": float(spot_um), "pitch_um": float(pitch_um), "um_per_unit": float(um_per_unit)}
    if split is None:
        return spots
    rest = cells.copy()
    rest.X = (counts - kept).astype(np.float32)
    return spots, rest


def _check_options(
    spot_um: float, pitch_um: float, um_per_unit: float, split: float | None, seed: int, origin: Any
) -> None:
    problems = Problems("cannot make spots of these cells")
    given = {"spot_um": spot_um, "pitch_um": pitch_um, "um_per_unit": um_per_unit, "split": split}
    wrong = problems.check(given | {"random_state": seed, "origin": origin}, ARGUMENTS)
    if not wrong & {"spot_um", "pitch_um"} and pitch_um < spot_um:
        problems.add(
            f"`pitch_um` needs at least `spot_um`={spot_um:g}, but is {pitch_um:g}. Overlapping spots would count "
            f"cells twice. Pass `pitch_um={spot_um:g}` or more.",
            ValueError,
        )
    problems.raise_if_any()


def _positions(cells: AnnData) -> np.ndarray:
    """``(cells, 2)`` centres as (x, y), in the cells' units."""
    if "spatial" not in cells.obsm:
        raise KeyError(
            f"`cells` need their centres in obsm['spatial'], which is missing. Available: {list(cells.obsm)}. "
            f"Set `cells.obsm['spatial']` to (x, y)."
        )
    xy = np.asarray(cells.obsm["spatial"], float)
    if xy.ndim != 2 or xy.shape[1] < 2 or not len(xy) or not np.isfinite(xy).all():
        raise ValueError(
            f"`cells.obsm['spatial']` needs finite (x, y) of at least one cell, but has shape {xy.shape} with "
            f"{int((~np.isfinite(xy)).sum())} values that are not finite. Drop cells without a position."
        )
    return xy[:, :2]


def _counts(cells: AnnData) -> sparse.csr_matrix:
    """``cells.X`` as int64; a copy."""
    matrix: Any = cells.to_memory().X if cells.isbacked else cells.X
    matrix = sparse.csr_matrix(matrix.compute() if hasattr(matrix, "compute") else matrix)
    values = matrix.data
    wrong = ~(np.isfinite(values) & (values >= 0) & (values == np.rint(values)))
    if wrong.any():
        raise ValueError(
            f"`cells.X` needs counts (finite, non-negative, whole), but {wrong.sum():,} of its {len(values):,} stored "
            f"values are not, such as {values[wrong][0]:.6g}. Spots measure sums of counts. "
            f"Set `cells.X = cells.layers['counts']`."
        )
    return matrix.astype(np.int64)


def _spots(
    xy_um: np.ndarray, spot_um: float, pitch_um: float, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray, sparse.csr_matrix]:
    """Centres ``(spots, 2)`` as (x, y), array index and members ``(spots, cells)`` of the spots that have a cell."""
    centres, index = _lattice(xy_um.min(0), xy_um.max(0), spot_um, pitch_um, origin)
    if len(centres):
        distance, spot = cKDTree(centres).query(xy_um)
        member = np.flatnonzero(distance <= spot_um / 2)
    else:
        spot = member = np.zeros(0, int)
    place = sparse.csr_matrix((np.ones(len(member), np.int64), (spot[member], member)), (len(centres), len(xy_um)))
    used = np.flatnonzero(np.diff(place.indptr))
    if len(used):
        index = index - 2 * (index[used].min(0) // 2)  # by whole periods: row and column keep equal parity
    return centres[used], index[used], place[used]


def _lattice(
    low: np.ndarray, high: np.ndarray, spot_um: float, pitch_um: float, origin: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hexagonal lattice with a spot at ``origin``; only discs entirely in the box.

    Returns
    -------
    Centres ``(spots, 2)`` as (x, y), and ``(spots, 2)`` int row and column, columns in half pitches.
    """
    step = np.array([pitch_um, pitch_um * np.sqrt(3) / 2])
    (x0, y0), (x1, y1) = (np.floor((low - origin) / step).astype(int) - 1, np.ceil((high - origin) / step).astype(int))
    row, column = (index.ravel() for index in np.mgrid[y0 : y1 + 1, x0 : x1 + 1])
    centres = origin + np.stack([column + 0.5 * (row % 2), row], 1) * step
    dust = 1e-9 * pitch_um  # tolerance, as the disc in the corner touches the box
    whole = ((centres >= low + spot_um / 2 - dust) & (centres <= high - spot_um / 2 + dust)).all(1)
    return centres[whole], np.stack([row, 2 * column + row % 2], 1)[whole]
