"""Stores that may be a stranger's: nothing in them gets to run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import spatialdata
from spatialdata import SpatialData

from hadmst_sc.io.given import check_store_path

METADATA = ("zarr.json", ".zarray", ".zmetadata")
CODE = "pickle"  # the one codec of numcodecs whose data are a program


def open_store(path: Path) -> SpatialData:
    """Read a store of SpatialData, unless one of its arrays would be decoded by running what it holds.

    Parameters
    ----------
    path
        The zarr store.

    Raises
    ------
    ValueError
        If the path is no store of SpatialData, or an array names the pickle codec, with the place of the array.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> sdata.write("section.zarr")
    >>> "phantom_full_image" in hd.io.open_store("section.zarr")
    True
    """
    check_store_path(Path(path))
    for file in Path(path).rglob("*"):  # once: most of a store are chunks
        if file.name not in METADATA:
            continue
        if any(codec.rpartition(".")[2] == CODE for codec in _codecs(json.loads(file.read_bytes()))):
            place = file.parent.relative_to(path)
            raise ValueError(
                f"`{Path(path).name}` needs arrays of plain values, but '{place}' is packed with pickle, "
                f"which runs code when it is read. Ask whoever made the store for one without."
            )
    return spatialdata.read_zarr(path)


def _codecs(metadata: Any) -> Iterator[str]:
    """Names of codecs, at any depth: ``id`` in zarr 2, ``name`` in zarr 3."""
    if isinstance(metadata, dict):
        yield from (str(metadata[key]) for key in ("id", "name") if key in metadata)
        metadata = list(metadata.values())
    if isinstance(metadata, list):
        for value in metadata:
            yield from _codecs(value)
