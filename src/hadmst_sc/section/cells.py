"""Cells or nuclei of a section, as the share of each bin that they cover."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells on the grid of an observation.

    Parameters
    ----------
    key
        Name of the element that they came from.
    ids
        ``(cells,)`` name of each.
    overlap
        ``(cells, bins)`` share of each bin that a cell covers, bins in the order of the flattened grid. Cells that are
        points have no area, and count one in their bin.
    areal
        True if cells have an area.
    centres
        ``(cells, 2)`` as (x, y), in bins; NaN for an empty shape. ``None`` if they are not known.
    digest
        Digest of the element, to recognise it under another name.
    place
        ``(3, 3)`` affine on (x, y, 1) from the element to bins; ``None`` if it is not known.
    """

    key: str
    ids: np.ndarray
    overlap: sparse.csr_array
    areal: bool
    centres: np.ndarray | None = None
    digest: str = ""
    place: np.ndarray | None = None

    @property
    def density(self) -> np.ndarray:
        """``(bins,)`` share of each bin that is covered by cells; of points, their number."""
        return np.asarray(self.overlap.sum(0)).ravel()
