"""Contents of a store: its elements, the list in its root document, and the provenance of its results."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import spatialdata
import zarr
from anndata import AnnData
from anndata.experimental import read_elem_lazy
from spatialdata import SpatialData

from hadmst_sc.io.counts import layers_of
from hadmst_sc.io.given import check_store_path
from hadmst_sc.section.observation import PROVENANCE_KEY

ROOT = "zarr.json"
KINDS = ("images", "labels", "points", "shapes", "tables")
MAX_LOADED = 256 * 2**20  # bytes of one array of a table
# How zarr writes a group into the list of contents.
EMPTY = {"kind": "inline", "must_understand": False, "metadata": {}}


def runs_of(path: Path) -> dict[str, Any]:
    """Provenance of all results in a store, by their names."""
    found = json.loads((Path(path) / ROOT).read_text()).get("attributes", {}).get(PROVENANCE_KEY, {})
    return found if isinstance(found, dict) else {}


def elements_on_disk(path: Path) -> set[tuple[str, str]]:
    """Kind and name of every element in a store, whether its list of contents has it or not."""
    groups = [Path(path) / kind for kind in KINDS]
    return {
        (group.name, element.name)
        for group in groups
        if group.is_dir()
        for element in group.iterdir()
        if element.is_dir() and not element.name.startswith(".")
    }


def hide(root: dict[str, Any], places: Iterable[str]) -> None:
    """Take places off the list of contents of a root document, if it has one."""
    listed = (root.get("consolidated_metadata") or {}).get("metadata", {})
    for place in places:
        for key in [key for key in listed if f"{key}/".startswith(f"{place}/")]:
            del listed[key]


def relist(root: dict[str, Any], path: Path, places: Iterable[str]) -> None:
    """Bring places on the list of contents of a root document, if it has one, to what is on disk."""
    if not root.get("consolidated_metadata"):
        return
    hide(root, places)
    listed = root["consolidated_metadata"]["metadata"]
    for kind in dict.fromkeys(place.partition("/")[0] for place in places):
        listed.pop(kind, None)
        if (path / kind / ROOT).is_file():
            listed[kind] = _node(path / kind / ROOT)
    for place in places:
        for file in (path / place).rglob(ROOT):
            listed[file.parent.relative_to(path).as_posix()] = _node(file)
    # In zarr's order: it takes nodes of one parent for such only where they stand together.
    root["consolidated_metadata"]["metadata"] = dict(sorted(listed.items(), key=lambda one: _order(one[0])))


def _order(key: str) -> tuple[int, str]:
    return key.count("/"), unicodedata.normalize("NFKC", key).casefold()


def _node(file: Path) -> dict[str, Any]:
    node: dict[str, Any] = json.loads(file.read_text())
    return node | {"consolidated_metadata": EMPTY} if node.get("node_type") == "group" else node


def discard(path: Path) -> None:
    """Remove a file, link or folder, if it is there; nothing that a link leads to."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def reread(path: Path, names: list[str]) -> dict[str, Any]:
    """Image and label elements as they are on disk."""
    fresh = spatialdata.read_zarr(path, selection=("images", "labels"))
    return {name: fresh[name] for name in names}


def reread_table(path: Path, name: str, table: AnnData) -> AnnData:
    """The table with its large arrays as they are on disk: in memory while they are small, else as dask arrays."""
    group = zarr.open_group(Path(path) / "tables" / name, mode="r")
    table.X = _array(group["X"])
    for layer in layers_of(table):
        table.layers[layer] = _array(group[f"layers/{layer}"])
    return table


def _array(stored: Any) -> Any:
    values = read_elem_lazy(stored)
    return values.compute() if values.nbytes <= MAX_LOADED else values


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
