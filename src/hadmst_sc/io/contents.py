"""Contents of a store: its elements, the list in its root document, and the provenance of its results."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import spatialdata
import zarr
from anndata import AnnData
from anndata.experimental import read_elem_lazy

from hadmst_sc.contract import PROVENANCE_KEY
from hadmst_sc.io.counts import layers_of

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
