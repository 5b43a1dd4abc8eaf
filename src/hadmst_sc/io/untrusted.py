"""Stores that may be a stranger's: nothing in them gets to run, and nothing outside them is reached through them."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import spatialdata
from spatialdata import SpatialData

from hadmst_sc.io.given import check_store_path

METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
CODE = "pickle"  # the one codec of numcodecs whose data are a program


def open_store(path: Path) -> SpatialData:
    """Read a store of SpatialData, unless reading it would run what it holds or lead out of it.

    Parameters
    ----------
    path
        The zarr store; may be a link, but none may be in it.

    Raises
    ------
    ValueError
        If the path is no store of SpatialData; if an array names the pickle codec, with the place of the array; if
        there is a link or device in the store, or metadata that are no JSON.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> sdata.write("section.zarr")
    >>> "phantom_full_image" in hd.io.open_store("section.zarr")
    True
    """
    check_store_path(Path(path))
    check_harmless(path)
    return spatialdata.read_zarr(path)


def check_harmless(path: Path) -> None:
    """Refuse a folder with links, devices, or arrays that are packed with pickle."""
    path = Path(path)
    for entry in _entries(os.path.realpath(path)):
        place = os.path.relpath(entry.path, os.path.realpath(path))
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            raise ValueError(
                f"`{path.name}` needs plain files and folders, but '{place}' is a link or a device, which leads out of "
                f"it. If you trust what links lead to, make a copy with it: "
                f"`cp -rL {shlex.quote(str(path))} copy.zarr`."
            )
        if entry.name.lower() not in METADATA or entry.is_dir():
            continue
        try:
            codecs = list(_codecs(json.loads(Path(entry.path).read_bytes())))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"`{path.name}` needs metadata in JSON, but '{place}' is none: {error}. The store is damaged. "
                f"Ask whoever made it for a whole one."
            ) from error
        if any(codec.lower().rpartition(".")[2] == CODE for codec in codecs):
            raise ValueError(
                f"`{path.name}` needs arrays of plain values, but '{os.path.dirname(place)}' is packed with pickle, "
                f"which runs code when it is read. Ask whoever made the store for one without."
            )


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Everything below a folder; does not enter links."""
    folders = [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)


def _codecs(metadata: Any) -> Iterator[str]:
    """Names of codecs, at any depth: ``id`` in zarr 2, ``name`` in zarr 3."""
    if isinstance(metadata, dict):
        yield from (str(metadata[key]) for key in ("id", "name") if key in metadata)
        metadata = list(metadata.values())
    if isinstance(metadata, list):
        for value in metadata:
            yield from _codecs(value)
