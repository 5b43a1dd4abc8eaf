"""Spots drawn into a labels image with one id each: square bins or discs."""

from __future__ import annotations

import numpy as np
import shapely
from geopandas import GeoDataFrame

from hadmst_sc.section.errors import Problems

DISC = 5  # smallest diameter in pixels at which a disc can be distinguished from a square


def spots_of_labels(values: np.ndarray, key: str, problems: Problems) -> GeoDataFrame | None:
    """Return squares or circles in pixels of ``(y, x)`` labels, indexed by id; ``None`` after a problem."""
    row, col = np.nonzero(values)
    order = np.argsort(values[row, col], kind="stable")
    row, col = row[order], col[order]
    ids, first, n = np.unique(values[row, col], return_index=True, return_counts=True)
    if not len(ids):
        problems.add(f"labels/{key}: needs the spots' ids as pixels, but all pixels are 0. {_OTHER}")
        return None
    low, high = (
        np.c_[one.reduceat(col, first), one.reduceat(row, first)] for one in (np.minimum, np.maximum)
    )  # (x, y) of the corner pixels
    size = high + 1 - low
    width = size.mean()
    alike = np.ptp(size) <= 1 or np.ptp(size) <= 0.1 * width  # borders are rounded to pixels
    filled = n / size.prod(1)
    middle = low + size / 2
    if alike and (filled == 1).all():
        half = width / 2
        shapes = GeoDataFrame(geometry=shapely.box(*(middle - half).T, *(middle + half).T), index=ids.astype(np.int64))
    elif alike and width >= DISC and (np.abs(filled - np.pi / 4) < 0.1).all():
        shapes = GeoDataFrame({"radius": np.sqrt(n.mean() / np.pi)}, geometry=shapely.points(middle), index=ids)
    else:
        problems.add(
            f"labels/{key}: needs squares or discs of one size, but its {len(ids):,} labels have {n.min():,} to "
            f"{n.max():,} pixels or another form. Only footprints of known size can be summed over bins. {_OTHER}"
        )
        return None
    return shapes


_OTHER = "If these are cells, sum them to spots with `hadmst_sc.pp.degrade` and `hadmst_sc.pp.add_spots`."
