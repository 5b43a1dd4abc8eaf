"""Replace elements of a store on disk so that a crash at any time loses nothing.

The new elements are written to a sibling directory, then renamed into the store, while the old ones move to the
sibling. A journal in the sibling exists exactly while that is under way; whoever finds one puts the old elements back.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import spatialdata
import zarr
from anndata import AnnData
from anndata.experimental import read_elem_lazy
from spatialdata import SpatialData

from hadmst_sc.contract import PROVENANCE_KEY
from hadmst_sc.io.counts import layers_of

JOURNAL = "swap.json"
MAX_LOADED = 256 * 2**20  # bytes of one array of a table


def check_store(path: Path) -> None:
    """Refuse stores whose elements could not be moved into: zarr 2, as SpatialData before 0.5 wrote it."""
    if not (Path(path) / "zarr.json").is_file():
        raise ValueError(
            f"`sdata` needs a store in zarr format 3, but {Path(path).name!r} is older or gone. Elements of two "
            f"formats cannot be mixed. Call `sdata.write('new.zarr'); sdata = spatialdata.read_zarr('new.zarr')`."
        )


def _sibling(path: Path, key_added: str) -> Path:
    path = Path(path).absolute()
    return path.with_name(f".{path.name}.{key_added}.new")


def scratch(path: Path, key_added: str) -> Path:
    """Folder beside a store for what a run makes before it is written."""
    return _sibling(path, key_added).with_suffix(".maps")


def replace_on_disk(
    sdata: SpatialData,
    new: SpatialData,
    key_added: str,
    kinds: dict[str, str],
    runs: dict[str, Any],
    fill: Callable[[Path], None] | None = None,
) -> None:
    """Write the elements of ``new`` and move them into the store of ``sdata``, in place of those named in ``kinds``.

    Parameters
    ----------
    kinds
        Element names and their directories; those without a new element are removed.
    runs
        Provenance of all runs, for the attributes of the store.
    fill
        Called with the folder of the new images, to put into them what they were written without.
    """
    path, sibling = Path(sdata.path).absolute(), _sibling(sdata.path, key_added)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "zarr v3 autosharding", UserWarning)  # a coming default; once per array
            new.write(sibling, update_sdata_path=False)
        if fill is not None:
            fill(sibling / "images")
        _swap(path, sibling, kinds, [name for name in kinds if name in new])
        _update_json(path / "zarr.json", lambda root: root["attributes"].update({PROVENANCE_KEY: runs}))
        if sdata.has_consolidated_metadata():
            sdata.write_consolidated_metadata()
        (sibling / JOURNAL).unlink()  # from here on the new result stands
    finally:
        recover(path, key_added)


def _swap(path: Path, sibling: Path, kinds: dict[str, str], new: list[str]) -> None:
    places = [f"{kinds[name]}/{name}" for name in new]
    journal = {"new": places, "root": (path / "zarr.json").read_text()}
    for name in new:
        _ensure_group(path / kinds[name], sibling / kinds[name])
    (sibling / "old").mkdir()
    _write_atomically(sibling / JOURNAL, json.dumps(journal))
    # Readers trust the consolidated list: with the names off it, a store cut short here opens without the result.
    _update_json(path / "zarr.json", lambda root: _hide(root, [f"{kind}/{name}" for name, kind in kinds.items()]))
    for name, kind in kinds.items():
        if (path / kind / name).exists():
            (sibling / "old" / kind).mkdir(exist_ok=True)
            os.rename(path / kind / name, sibling / "old" / kind / name)
        if name in new:
            os.rename(sibling / kind / name, path / kind / name)


def _hide(root: dict[str, Any], places: list[str]) -> None:
    """Take elements off the consolidated list of a store's root, if it has one."""
    listed = (root.get("consolidated_metadata") or {}).get("metadata", {})
    for key in [key for key in listed if any(f"{key}/".startswith(f"{place}/") for place in places)]:
        del listed[key]


def recover(path: Path, key_added: str) -> None:
    """Undo a swap that did not end, and remove what is left of a write; does nothing where there is neither."""
    path, sibling = Path(path).absolute(), _sibling(path, key_added)
    if not sibling.exists():
        return
    if (sibling / JOURNAL).exists():
        journal = json.loads((sibling / JOURNAL).read_text())
        for place in journal["new"]:
            # Moved back, not deleted: should this be cut short too, the next attempt sees how far it came.
            if not (sibling / place).exists():
                os.rename(path / place, sibling / place)
        for old in (sibling / "old").glob("*/*"):
            os.rename(old, path / old.relative_to(sibling / "old"))
        _write_atomically(path / "zarr.json", journal["root"])
        (sibling / JOURNAL).unlink()
    shutil.rmtree(sibling)


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


def _ensure_group(group: Path, example: Path) -> None:
    """Make the directory of an element type; labels also list their members in the attributes."""
    if not group.exists():
        group.mkdir()
        shutil.copy(example / "zarr.json", group / "zarr.json")
        return
    added = json.loads((example / "zarr.json").read_text())["attributes"].get("ome", {}).get("labels", [])
    if added:

        def extend(document: dict[str, Any]) -> None:
            listed = document["attributes"].setdefault("ome", {}).setdefault("labels", [])
            listed += [name for name in added if name not in listed]

        _update_json(group / "zarr.json", extend)


def _update_json(file: Path, change: Any) -> None:
    document = json.loads(file.read_text())
    change(document)
    _write_atomically(file, json.dumps(document, indent=2))


def _write_atomically(file: Path, text: str) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    os.replace(partial, file)
