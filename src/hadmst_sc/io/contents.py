"""Contents of a store: its elements, the consolidated metadata in its root document, and the provenance of results."""

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
# Entry of a group in zarr's consolidated metadata.
EMPTY = {"kind": "inline", "must_understand": False, "metadata": {}}


def runs_of(path: Path) -> dict[str, Any]:
    """Return the provenance of all results in a store, by name."""
    found = json.loads((Path(path) / ROOT).read_text()).get("attributes", {}).get(PROVENANCE_KEY, {})
    return found if isinstance(found, dict) else {}


def elements_on_disk(path: Path) -> set[tuple[str, str]]:
    """Return kind and name of every element in a store, listed in its consolidated metadata or not."""
    groups = [Path(path) / kind for kind in KINDS]
    return {
        (group.name, element.name)
        for group in groups
        if group.is_dir()
        for element in group.iterdir()
        if element.is_dir() and not element.name.startswith(".")
    }


def hide(root: dict[str, Any], places: Iterable[str]) -> None:
    """Remove places from the consolidated metadata of a root document, if it has any."""
    listed = (root.get("consolidated_metadata") or {}).get("metadata", {})
    for place in places:
        for key in [key for key in listed if f"{key}/".startswith(f"{place}/")]:
            del listed[key]


def relist(root: dict[str, Any], path: Path, places: Iterable[str]) -> None:
    """Update places in the consolidated metadata of a root document, if it has any, from the files on disk."""
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
    # In zarr's order, because zarr recognises children of one parent only if they are adjacent.
    root["consolidated_metadata"]["metadata"] = dict(sorted(listed.items(), key=lambda one: _order(one[0])))


def _order(key: str) -> tuple[int, str]:
    return key.count("/"), unicodedata.normalize("NFKC", key).casefold()


def _node(file: Path) -> dict[str, Any]:
    node: dict[str, Any] = json.loads(file.read_text())
    return node | {"consolidated_metadata": EMPTY} if node.get("node_type") == "group" else node


def discard(path: Path) -> None:
    """Remove a file, link or folder if it exists; targets of links are kept."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)


def reread(path: Path, names: list[str]) -> dict[str, Any]:
    """Read image and label elements from disk."""
    fresh = spatialdata.read_zarr(path, selection=("images", "labels"))
    return {name: fresh[name] for name in names}


def reread_table(path: Path, name: str, table: AnnData) -> AnnData:
    """Replace the arrays of a table by those on disk: in memory if small, otherwise as dask arrays."""
    folder = Path(path) / "tables" / name
    group = zarr.open_group(folder, mode="r")
    table.X = _array(group, "X", folder)
    for layer in layers_of(table):
        table.layers[layer] = _array(group, f"layers/{layer}", folder)
    return table


def _array(group: zarr.Group, name: str, folder: Path) -> Any:
    values = read_elem_lazy(group[name])
    if values.nbytes <= MAX_LOADED:
        return values.compute()
    file = folder / name / ROOT
    return values.map_blocks(_if_unchanged, file, _stamp(file), folder.name, dtype=values.dtype, meta=values._meta)


def _stamp(file: Path) -> tuple[int, int] | None:
    """Differs if a file was written again; ``None`` if there is none."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _if_unchanged(block: Any, file: Path, stamp: tuple[int, int] | None, table: str) -> Any:
    """Return a block that was read; from an array whose chunks were deleted, zarr reads zeros."""
    if _stamp(file) != stamp:
        here = f"sdata[{table!r}]"
        raise OSError(
            f"tables/{table}: was deleted or replaced after it was read; a table as large as this is read from the "
            f"store when it is used. Read the store again. Before you delete a table, load it: `{here} = "
            f"{here}.to_memory()`."
        )
    return block


METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
CODE = "pickle"  # the only numcodecs codec that executes its data


def open_store(path: Path) -> SpatialData:
    """Read a SpatialData store, unless reading it would run code from it or follow links out of it.

    Parameters
    ----------
    path
        The zarr store. The path may be a link, but the store must not contain links.

    Raises
    ------
    ValueError
        If the path is not a SpatialData store, an array uses the pickle codec (the message names the array), or the
        store contains a link, a device, or metadata that are not JSON.

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
    """Refuse a folder that contains links, devices, or arrays encoded with pickle."""
    path = Path(path)
    for entry in _entries(os.path.realpath(path)):
        place = os.path.relpath(entry.path, os.path.realpath(path))
        if entry.is_symlink() or not (entry.is_dir() or entry.is_file()):
            raise ValueError(
                f"`{path.name}` needs plain files and folders, but '{place}' is a link or a device, which points "
                f"outside it. If you trust the targets of its links, copy the store with them: "
                f"`cp -rL {shlex.quote(str(path))} copy.zarr`."
            )
        if entry.name.lower() not in METADATA or entry.is_dir():
            continue
        try:
            codecs = list(_codecs(json.loads(Path(entry.path).read_bytes())))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"`{path.name}` needs metadata in JSON, but '{place}' is not JSON: {error}. The store is damaged. "
                f"Ask its author for an intact copy."
            ) from error
        if any(codec.lower().rpartition(".")[2] == CODE for codec in codecs):
            raise ValueError(
                f"`{path.name}` needs arrays of plain values, but '{os.path.dirname(place)}' is encoded with pickle, "
                f"which runs code when it is read. Ask the author of the store for a copy without pickle."
            )


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield everything below a folder, without following links."""
    folders = [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                yield entry
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)


def _codecs(metadata: Any) -> Iterator[str]:
    """Yield names of codecs at any depth: ``id`` in zarr 2, ``name`` in zarr 3."""
    if isinstance(metadata, dict):
        yield from (str(metadata[key]) for key in ("id", "name") if key in metadata)
        metadata = list(metadata.values())
    if isinstance(metadata, list):
        for value in metadata:
            yield from _codecs(value)
