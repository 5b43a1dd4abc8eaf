"""Interface to SpatialData: :mod:`.read` turns elements into arrays, :mod:`.write` turns arrays into elements."""

from __future__ import annotations

from hadmst_sc.io.contents import open_store
from hadmst_sc.io.export import export
from hadmst_sc.io.from_anndata import from_anndata
from hadmst_sc.io.read import read_observation
from hadmst_sc.io.write import as_spatialdata, check_output, check_size, write_prediction

__all__ = [
    "as_spatialdata",
    "check_output",
    "check_size",
    "export",
    "from_anndata",
    "open_store",
    "read_observation",
    "write_prediction",
]
