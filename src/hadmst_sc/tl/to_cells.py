"""Expected counts of cells, from the bins of a result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData

from hadmst_sc.distillation.cells import Support
from hadmst_sc.io.cells import cells_on_grid
from hadmst_sc.io.resolve import affine, systems
from hadmst_sc.io.result import Result, find_result
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.cells import Cells
from hadmst_sc.section.errors import MissingKeyError, logger
from hadmst_sc.tl.regions import annotating, check_record, totals

BACKGROUND = "background"  # column of `var`


@usual_errors
def to_cells(sdata: SpatialData, cells_key: str, *, key_added: str = "superres") -> AnnData:
    """Expected counts of every gene in each cell, with 90 % intervals.

    Counts of a bin that follow the cells (see ``cells_key`` of :func:`superresolve`) are divided between the cells of
    the bin by the area that each covers there; all other counts are spread evenly over the bin, and a cell gets those
    of its area. What is left lies between the cells: it is the background.

    Parameters
    ----------
    sdata
        Holds the result and the cells. It is not changed.
    cells_key
        Shapes (polygons, circles or points), points, or labels. If they are not those that the result was made with,
        all counts are spread evenly; points have no area then, and are refused.
    key_added
        Name of the result.

    Returns
    -------
    A table with a row per cell, in the order of the element, which it annotates. ``X`` are expected counts, and
    ``layers`` hold ``std``, ``low`` and ``high`` as in :func:`regions`. ``obs["n_bins"]`` is the share of bins that
    belongs to the cell, ``obs["measured"]`` the part of that under spots; cells outside the tissue have NaN. Cells and
    ``var["background"]`` add up to the map.

    Raises
    ------
    KeyError
        If there is no such result or element, they share no coordinate system, or the table of the result has lost its
        record or the column ``dispersion`` of ``var``.
    ValueError
        If no cell lies in the tissue, or cells are points that the result was not made with.

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
    cells, inside = _cells(result, cells_key)
    known = str(result.provenance.get("cells")) == cells_key
    strength = float(result.provenance["strength_of_cells"]["used"]) if known else 0.0
    if not known and not cells.areal:
        raise ValueError(
            f"`cells_key={cells_key!r}`: points have no area, and {result.key!r} was made without them. Call "
            f"`hd.tl.superresolve(sdata, image_key, cells_key={cells_key!r}, overwrite=True)`."
        )
    if not known:
        logger.info("%r was made without %r: counts are taken as uniform within a bin", result.key, cells_key)
    rows, y, x = result.places
    support = Support.of(cells, inside, float(result.provenance["bin_um"]))
    weights = support.shares(cells, strength)[:, y * inside.shape[1] + x].tocsr()
    if not cells.density.reshape(inside.shape)[inside].any():
        raise ValueError(f"`cells_key={cells_key!r}` needs a cell in the tissue, but none of them lies there.")
    if not weights.nnz:
        logger.warning("the spots show no sign that expression follows %r: all counts lie between them", cells_key)
    found = totals(result, weights, pd.Index([str(name) for name in cells.ids]))
    n_bins = found.obs["n_bins"].to_numpy()
    covered = result.table.obs["covered"].to_numpy(float)[rows]
    found.obs["measured"] = np.where(n_bins > 0, weights @ covered / np.maximum(n_bins, 1e-12), np.nan)
    left = np.asarray(result.maps_at_bins(), float).sum(0) - np.nansum(np.asarray(found.X), 0)
    found.var[BACKGROUND] = left
    return annotating(found, cells_key, cells.ids)


def _cells(result: Result, key: str) -> tuple[Cells, np.ndarray]:
    """Cells on the grid of a result, and its tissue ``(ny, nx)``."""
    sdata: Any = result.sdata
    kind = next((one for one in ("shapes", "labels", "points") if key in getattr(sdata, one)), None)
    if kind is None:
        raise MissingKeyError(
            f"`cells_key={key!r}` needs shapes, labels or points, but is none of them. Available: "
            f"{[*sdata.shapes, *sdata.labels, *sdata.points]}."
        )
    element, bins = getattr(sdata, kind)[key], sdata.labels[result.region]
    shared = [name for name in (result.system, *systems(bins)) if name in systems(element)]
    if not shared:
        raise MissingKeyError(
            f"{kind}/{key}: shares no coordinate system with the result. It has {list(systems(element))}, the result "
            f"{list(systems(bins))}. Call `spatialdata.transformations.set_transformation` with "
            f"`to_coordinate_system={result.system!r}`."
        )
    inside = np.asarray(result.labels.data) > 0
    to_bins = np.linalg.inv(result.to_system(shared[0])) @ affine(element, shared[0])
    return cells_on_grid(element, kind, to_bins, inside.shape, key), inside
