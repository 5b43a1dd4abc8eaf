"""Replace elements of a store on disk so that a crash at any time loses nothing.

1. The new elements are written to a folder next to the store.
2. This folder is moved into the store as a hidden folder, with a journal of the swap.
3. The old elements are moved into the hidden folder, and the new ones from it to their places.
4. Provenance and consolidated metadata of the root document are updated, and the hidden folder is removed.

Each new element carries the id of its run. After a crash, the next call undoes the swap if no new element was in place,
and completes it otherwise. All data needed for this are in the store, and so stay with it if it is moved, copied,
replaced or restored from a backup.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
from dask.system import CPU_COUNT
from spatialdata import SpatialData

from hadmst_sc.io.contents import ROOT, discard, hide, relist, runs_of
from hadmst_sc.io.lock import StoreError, beside, gone, home, interrupts_held, locked, named, wait_for_zarr
from hadmst_sc.section.observation import PROVENANCE_KEY, OutputNames

JOURNAL = "swap.json"
OURS = ("images", "labels", "tables")  # element types of a result


def check_store(path: Path) -> None:
    """Refuse stores that cannot be updated: missing, with links, or in zarr 2 (SpatialData before 0.5)."""
    path = home(path)
    if not path.is_dir():
        raise gone(path)
    if not (path / ROOT).is_file():
        raise ValueError(
            f"`sdata` needs a store in zarr format 3, but {path.name!r} is older. A store cannot combine two formats. "
            f"Call `sdata.write('new.zarr'); sdata = spatialdata.read_zarr('new.zarr')`."
        )
    groups = [path / kind for kind in OURS]
    for place in (path / ROOT, *groups, *(group / ROOT for group in groups)):
        if place.is_symlink():
            raise StoreError(
                f"`sdata` needs a store without links, but {place.relative_to(path)} in {path.name} is a link. Writing "
                f"through it would change files outside the store. Call `sdata.write('new.zarr'); "
                f"sdata = spatialdata.read_zarr('new.zarr')`."
            )


def check_room(path: Path, n_bytes: float) -> None:
    """Refuse a result of ``n_bytes`` if the disk of the store has less free space."""
    free = shutil.disk_usage(home(path).parent).free
    if n_bytes > free:
        raise StoreError(
            f"`sdata` needs a store with room for a result of at least {n_bytes / 1e9:.1f} GB, but the disk of "
            f"{Path(path).name} has {free / 1e9:.1f} GB left. Free space, or pass fewer `genes=` or a larger `bin_um=`."
        )


def _sibling(path: Path, key_added: str) -> Path:
    """Return the folder that new elements are written to; its contents can be deleted unless a run holds the lock."""
    return beside(home(path), f"{key_added}.new")


def scratch(path: Path, key_added: str) -> Path:
    """Return the folder next to a store for intermediate results of a run."""
    return beside(home(path), f"{key_added}.maps")


@contextmanager
def claimed(path: Path, key_added: str, wait: float = 0.0) -> Iterator[None]:
    """Be the only run that writes ``key_added`` into a store; first complete or undo the swap of a killed run.

    Raises
    ------
    StoreError
        If another run has not finished after ``wait`` seconds, or the store cannot be written.
    """
    check_store(path)
    path = home(path)
    with locked(path, key_added, wait) as new:
        if new:
            with named(path):
                _tidy(path, key_added)
        yield


def recover(path: Path, key_added: str) -> None:
    """Complete or undo an unfinished swap and remove remains of an interrupted write, if there are any."""
    with claimed(path, key_added):
        pass


def _tidy(path: Path, key_added: str) -> None:
    sibling, folder = _sibling(path, key_added), _inside(path, key_added)
    if not any(map(os.path.lexists, (sibling, folder, beside(path, "lock")))):
        return
    with locked(path), interrupts_held():
        discard(sibling)
        swap = Swap.left(path, key_added)
        if swap is not None and swap.begun and swap.whole:
            _swap(swap)
            swap.register()
            swap.finish(sibling)
        elif swap is not None:
            swap.undo()
            swap.finish(sibling)
        discard(folder)
        discard(sibling)


def kinds_of(key_added: str) -> dict[str, str]:
    """Return the names of all elements that a result may have, with their types."""
    names = OutputNames(key_added)
    return {names.image: "images", names.std: "images", names.bins: "labels", names.table: "tables"}


@contextmanager
def replace_on_disk(
    path: Path,
    new: SpatialData,
    key_added: str,
    fill: Callable[[Path], None] | None = None,
    between: Callable[[], None] = lambda: None,
) -> Iterator[None]:
    """Write the elements of ``new`` and move them into a store, replacing an earlier result of the same name.

    The new elements are in place inside the block; an exception from the block restores the old ones.

    Parameters
    ----------
    path
        The store.
    new
        The elements, with the provenance of the run in its attributes.
    fill
        Called with the folder of the new images, to add the arrays of hollow images.
    between
        Called after everything is written and before the store is changed: the last point to cancel.
    """
    path = home(path)
    sibling = _sibling(path, key_added)
    try:
        with named(path):
            write_all(new, sibling, fill)
            between()
            with locked(path):
                swap = Swap.begin(path, sibling, key_added, new)
                try:
                    _swap(swap)
                    swap.register()
                    yield
                except BaseException:
                    swap.undo()
                    swap.finish(sibling)
                    raise
                swap.finish(sibling)
    finally:
        discard(sibling)


def write_all(sdata: SpatialData, path: Path, fill: Callable[[Path], None] | None = None) -> None:
    """Write a store and ``fill`` its images; all threads have finished writing when this returns or raises."""
    try:
        with (
            ThreadPoolExecutor(CPU_COUNT) as pool,  # its end waits for all of its threads
            dask.config.set(pool=pool),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "zarr v3 autosharding", UserWarning)  # a future default; once per array
            sdata.write(path, update_sdata_path=False)
        if fill is not None:
            fill(path / "images")
    finally:
        wait_for_zarr()


@dataclass(frozen=True)
class Swap:
    """An exchange of elements of a store, made while the lock of the store is held."""

    path: Path
    folder: Path
    """Hidden folder in the store: new elements before they are moved, and in ``old`` the old ones afterwards."""
    key: str
    run: str
    """Id of the run, which each new element carries."""
    places: tuple[str, ...]
    """All elements that are replaced or removed, as ``kind/name``."""
    new: tuple[str, ...]
    """Places of the new elements."""
    made: tuple[str, ...]
    """Element types that the store did not have before."""
    facts: Any
    """Provenance of the new result."""
    before: Any
    """Provenance of the old result; None if there was none."""

    @classmethod
    def begin(cls, path: Path, sibling: Path, key: str, new: SpatialData) -> Swap:
        """Move the folder of new elements into the store, with the journal."""
        run, kinds, folder = uuid.uuid4().hex, kinds_of(key), _inside(path, key)
        places = tuple(f"{kind}/{name}" for name, kind in kinds.items())
        fresh = tuple(f"{kind}/{name}" for name, kind in kinds.items() if name in new)
        for place in fresh:
            _update_json(sibling / place / ROOT, lambda node: node["attributes"].update({PROVENANCE_KEY: {"run": run}}))
        made = tuple(kind for kind in OURS if not _is_group(path / kind))
        facts, before = new.attrs[PROVENANCE_KEY][key], runs_of(path).get(key)
        journal = {"run": run, "new": fresh, "made": made, "facts": facts, "before": before}
        (sibling / JOURNAL).write_text(json.dumps(journal))
        os.rename(sibling, folder)
        return cls(path, folder, key, run, places, fresh, made, facts, before)

    @classmethod
    def left(cls, path: Path, key: str) -> Swap | None:
        """Return the swap that a crash left in a store, if there is one and it contains no links."""
        folder = _inside(path, key)
        inner = ("", JOURNAL, "old", *OURS, *(f"old/{kind}" for kind in OURS))
        if not folder.is_dir() or any((folder / place).is_symlink() for place in inner):
            return None
        places = tuple(f"{kind}/{name}" for name, kind in kinds_of(key).items())
        try:
            journal = json.loads((folder / JOURNAL).read_text())
            new = tuple(place for place in places if place in journal["new"])
            made = tuple(kind for kind in OURS if kind in journal["made"])
            return cls(path, folder, key, str(journal["run"]), places, new, made, journal["facts"], journal["before"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return cls(path, folder, key, "", places, (), (), None, None)

    def _is_here(self, place: str) -> bool:
        """Return True if the element at a place is that of this run."""
        try:
            node = json.loads((self.path / place / ROOT).read_text())
            return bool(node["attributes"][PROVENANCE_KEY]["run"] == self.run)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False

    @property
    def begun(self) -> bool:
        """True if a new element is in place."""
        return any(map(self._is_here, self.new))

    @property
    def whole(self) -> bool:
        """True if each new element is in place, or can still be moved to its place because the place is free."""
        return all(
            self._is_here(place) or ((self.folder / place).is_dir() and not os.path.lexists(self.path / place))
            for place in self.new
        )

    def undo(self) -> None:
        """Remove new elements, and restore old ones wherever their place is free."""
        for place in reversed(self.new):
            if self._is_here(place):
                os.rename(self.path / place, self.folder / place)
        for place in self.places:
            old = self.folder / "old" / place
            if os.path.lexists(old) and (self.path / place).parent.is_dir() and not os.path.lexists(self.path / place):
                os.rename(old, self.path / place)
        for place in self.new:
            discard(self.folder / place)  # on a full disk, frees space for the steps below
        for kind in self.made:
            group = self.path / kind
            if group.is_dir() and {one.name for one in group.iterdir()} <= {ROOT}:
                discard(group)
        self._update_labels()
        self._update_root(lambda facts: self.before if facts == self.facts else facts)

    def register(self) -> None:
        """Add the new elements and their provenance to the root document."""
        self._update_labels()
        self._update_root(lambda _: self.facts)

    def finish(self, sibling: Path) -> None:
        """Move the hidden folder out of the store."""
        os.rename(self.folder, sibling)
        (sibling / JOURNAL).unlink(missing_ok=True)

    def hide(self) -> None:
        """Remove all elements from the consolidated metadata, so that the store opens without them after a crash."""
        self._change(self.path / ROOT, lambda root: hide(root, [*self.places, self.folder.name]))

    def _update_root(self, facts_of: Callable[[Any], Any]) -> None:
        def change(root: dict[str, Any]) -> None:
            runs = dict(root["attributes"].pop(PROVENANCE_KEY, {}))
            runs[self.key] = facts_of(runs.get(self.key))
            if runs := {key: facts for key, facts in runs.items() if facts is not None}:
                root["attributes"][PROVENANCE_KEY] = runs
            relist(root, self.path, self.places)
            hide(root, [self.folder.name])

        self._change(self.path / ROOT, change)

    def _update_labels(self) -> None:
        """Update the list of members in the attributes of the labels group."""
        ours = {place.partition("/")[2] for place in self.places if place.startswith("labels/")}

        def change(node: dict[str, Any]) -> None:
            ome = node["attributes"].get("ome", {})
            there = [name for name in ours if (self.path / "labels" / name).is_dir()]
            names = [name for name in ome.get("labels", []) if name not in ours or name in there]
            names += [name for name in there if name not in names]
            if names or "labels" in ome:
                node["attributes"]["ome"] = ome | {"labels": names}

        if _is_group(self.path / "labels"):
            self._change(self.path / "labels" / ROOT, change)

    def _change(self, file: Path, change: Callable[[dict[str, Any]], None]) -> None:
        _update_json(file, change, self.folder / "partial")


def _inside(path: Path, key_added: str) -> Path:
    return path / f".{key_added}.new"


def _swap(swap: Swap) -> None:
    """Move old elements out and new ones in; continues after an interrupted attempt."""
    for place in swap.new:
        kind = place.partition("/")[0]
        _ensure_group(swap.path / kind, swap.folder / kind)
    swap.hide()
    if not swap.begun:
        for place in swap.places:
            if os.path.lexists(swap.path / place):
                (swap.folder / "old" / place).parent.mkdir(parents=True, exist_ok=True)
                os.rename(swap.path / place, swap.folder / "old" / place)
    for place in swap.new:
        if (swap.folder / place).is_dir():
            os.rename(swap.folder / place, swap.path / place)


def _ensure_group(group: Path, example: Path) -> None:
    """Create the folder of an element type, or complete one that a crash left without metadata."""
    if not _is_group(group):
        group.mkdir(exist_ok=True)
        shutil.copy(example / ROOT, group / ROOT)


def _is_group(folder: Path) -> bool:
    return (folder / ROOT).is_file() and (folder / ROOT).stat().st_size > 0


def _update_json(file: Path, change: Callable[[dict[str, Any]], None], partial: Path | None = None) -> None:
    text = file.read_text()
    document = json.loads(text)
    change(document)
    if document != json.loads(text):
        _write_atomically(file, json.dumps(document, indent=2), partial or file.with_name(f"{file.name}.partial"))


def _write_atomically(file: Path, text: str, partial: Path) -> None:
    partial.unlink(missing_ok=True)
    with partial.open("x") as stream:  # never through a link
        stream.write(text)
    os.replace(partial, file)
