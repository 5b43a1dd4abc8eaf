"""Expected counts of cells, from the bins of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from hadmst_sc.distillation.cells import Support
from hadmst_sc.io.cells import read_cells
from hadmst_sc.io.frame import Frame, systems_of, warn_beside_image
from hadmst_sc.io.resolve import transform
from hadmst_sc.io.result import Result, again, columns_of, find_result
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.cells import Cells
from hadmst_sc.section.errors import Problems, logger
from hadmst_sc.tl.regions import LAYERS, MAX_BYTES, annotating, check_record, totals, warn_if_partial

BACKGROUND = "background"  # column of `var`
MOVED = 0.1  # bins


@usual_errors
def to_cells(
    sdata: SpatialData, cells_key: str, *, genes: Sequence[str] | None = None, key_added: str = "superres"
) -> AnnData:
    """Divide the expected counts of bins between cells, with 90 % intervals.

    Counts of a bin that follow the cells (see ``cells_key`` of :func:`superresolve`) are divided between the cells of
    the bin by the area that each covers there; all other counts are spread evenly over the bin, and a cell gets those
    of its area. The rest lies between the cells: the background.

    Parameters
    ----------
    sdata
        Holds the result and the cells. It is not changed.
    cells_key
        Shapes (polygons, circles or points), points, or labels. If they are not the cells of the run, all counts are
        spread evenly over the bins; points have no area and are then refused.
    genes
        Names of genes of the result; ``None`` = all.
    key_added
        Name of the result.

    Returns
    -------
    AnnData with one row per cell, in the order of the element, which it annotates. ``X`` are expected counts, and
    ``layers`` hold ``std``, ``low`` and ``high`` as in :func:`regions`; cells outside the tissue have NaN.
    ``obs["n_bins"]`` is the area assigned to the cell, in bins, and ``obs["covered"]`` the share of it under spots.
    ``obsm["spatial"]`` are centres in the coordinate system of the result. Cells and
    ``var["background"]`` add up to the map.

    Raises
    ------
    KeyError
        If there is no such result, element or gene, they share no coordinate system, or the table of the result has
        lost its provenance or the column ``dispersion`` of ``var``.
    ValueError
        If no cell lies in the tissue, the cells are points but not those of the run, or the table would be larger than
        4 GB.
    ContractError
        If the cells cannot be read.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`, with three circles as cells:

    >>> from spatialdata.models import ShapesModel
    >>> from spatialdata.transformations import get_transformation
    >>> places = get_transformation(sdata["superres_bins"], get_all=True)
    >>> xy = np.array([[9.0, 9.0], [15.0, 9.0], [21.0, 9.0]])
    >>> sdata["cells"] = ShapesModel.parse(xy, geometry=0, radius=0.5, transformations=places)
    >>> cells = hd.tl.to_cells(sdata, "cells")
    >>> cells.shape, "background" in cells.var
    ((3, 4), True)
    """
    result = find_result(sdata, key_added)
    check_record(result)
    warn_beside_image(result)
    warn_if_partial(result)
    columns = columns_of(result.table.var_names, genes, f"tables/{result.table_key}")
    inside = np.asarray(result.labels.data) > 0
    cells, system = _cells(result, cells_key, inside.shape)
    strength = _strength(result, cells)
    size = LAYERS * 4 * len(cells.ids) * len(columns)
    if size > MAX_BYTES:
        fewer = max(1, len(columns) * MAX_BYTES // size)
        raise ValueError(
            f"`genes`: {len(columns):,} genes of {len(cells.ids):,} cells would be a table of {size / 2**30:.0f} GB, "
            f"and at most {MAX_BYTES / 2**30:.0f} GB are made at once. Pass `genes=` with {fewer:,} names or fewer."
        )
    if not cells.density.reshape(inside.shape)[inside].any():
        raise ValueError(f"`cells_key={cells_key!r}` needs a cell in the tissue, but none of them lies there.")
    rows, y, x = result.places
    support = Support.of(cells, inside, float(result.provenance["bin_um"]))
    bins = y * inside.shape[1] + x
    weights = support.shares(cells, strength)[:, bins].tocsr()
    found, whole = totals(result, weights, pd.Index([str(name) for name in cells.ids]), columns, dtype=np.float32)
    in_tissue = np.asarray(cells.overlap[:, bins].sum(1)).ravel() > 0
    for values in (found.X, *found.layers.values()):
        values[in_tissue & np.isnan(values[:, 0])] = 0  # points that get nothing
    n_bins = found.obs["n_bins"].to_numpy()
    covered = result.table.obs["covered"].to_numpy(float)[rows]
    found.obs["covered"] = np.where(n_bins > 0, weights @ covered / np.maximum(n_bins, 1e-12), np.nan)
    found.var[BACKGROUND] = whole - np.nansum(found.X, 0, dtype=float)
    assert cells.centres is not None  # for types: they were read
    found.obsm["spatial"] = transform(result.to_system(system), cells.centres)
    return annotating(found, cells_key, cells.ids)


def _cells(result: Result, key: str, shape: tuple[int, int]) -> tuple[Cells, str]:
    """Cells on the grid of a result, and the coordinate system of their centres."""
    problems = Problems("counts of these cells cannot be given")
    available = systems_of(result)
    found = read_cells(
        result.sdata,
        key,
        f"labels/{result.region}",
        available,
        lambda system: np.linalg.inv(result.to_system(system)),
        shape,
        problems,
    )
    problems.raise_if_any()
    assert found is not None  # for types
    return found, available[0]


def _in_place(result: Result, cells: Cells, before: Sequence[float] | None) -> bool:
    """True if cells lie where they lay when a result was made, as far as is known."""
    if before is None or cells.place is None:
        return True
    then = np.vstack([np.reshape(before, (2, 3)), np.eye(3)[2]])
    to_grid = np.eye(3)
    to_grid[:2, 2] = Frame.of(result).corner  # of labels that were cropped
    height, width = result.labels.shape
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], float)
    moved = transform(to_grid @ cells.place @ np.linalg.inv(then), corners) - corners
    return bool(np.abs(moved).max() < MOVED)


def _strength(result: Result, cells: Cells) -> float:
    """Extent to which counts follow these cells: that of the run, or 0 if they are others."""
    record, learned = result.provenance, result.provenance.get("strength_of_cells")
    if isinstance(learned, Mapping):
        same = record.get("cells_digest") == cells.digest
        named = result.now(str(record["cells"]), [cells.key]) == cells.key
        if named and not same:
            logger.warning(
                "%r differs from what it was when %r was made (cropped, or changed): its counts follow the strength "
                "that was learned then",
                *(cells.key, result.key),
            )
        elif same and not _in_place(result, cells, record.get("cells_place")):
            logger.warning(
                "%r was moved since %r was made: its counts follow a strength that was learned at the old place. %s",
                *(cells.key, result.key, again(result, cells_key=cells.key)),
            )
        if named or same:
            return float(learned["used"])
    if not cells.areal:
        raise ValueError(
            f"`cells_key={cells.key!r}`: points have no area, and {result.key!r} was made without them. "
            f"{again(result, cells_key=cells.key)}"
        )
    logger.info("%r was made without %r: counts are taken as uniform within a bin", result.key, cells.key)
    return 0.0
