"""Maps on disk as they are made: one chunk per gene, written by whichever process has it, kept if the run is cut short.

The folder is scratch beside a store. What is in it counts only under the key of the run that made it: another section,
another parameter, another version of anything starts anew.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import zarr

from hadmst_sc.io.contents import ROOT, check_harmless, discard
from hadmst_sc.io.lock import interrupts_held, wait_for_zarr
from hadmst_sc.section.errors import logger
from hadmst_sc.section.observation import Box, Facts

RUN, MAPS, DONE = "run.json", "maps.zarr", "done"
EDGE = 1024  # bins along the side of a chunk
# What of an array's description says how its files are to be read.
LAYOUT = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")
# An interrupt leaves the thread that writes maps at work; what it writes must not come after their removal.
_writing = threading.Lock()


class StaleError(RuntimeError):
    """Maps of a run that has ended."""


class MapStore:
    """A :class:`~hadmst_sc.section.observation.MapSink` in a folder; it can be sent to workers."""

    def __init__(self, path: Path, key: str | None = None) -> None:
        self.path, self.key = Path(path), key

    @classmethod
    def open(cls, path: Path, key: str, shape: tuple[int, int, int], *, with_std: bool) -> MapStore:
        """Continue what a run with the same key left here, or start anew.

        Parameters
        ----------
        path
            The folder; made if it is not there.
        key
            What the maps depend on, as one string.
        shape
            ``(genes, ny, nx)``.
        with_std
            Whether a standard deviation comes with each map.
        """
        self = cls(path, key)
        if os.path.lexists(path):
            if self._key() == key:
                logger.info(
                    "continuing a run that was cut short: %d of %d genes are done", len(self.finished), shape[0]
                )
                return self
            logger.warning("%s holds a run with other parameters or input, which is discarded", path)
            discard(path)
        partial = path.with_name(f"{path.name}.partial")
        discard(partial)
        with interrupts_held():
            try:
                (partial / DONE).mkdir(parents=True)
                root = zarr.create_group(partial / MAPS)
                chunks = (1, min(shape[1], EDGE), min(shape[2], EDGE))
                for name in ("mean", "std")[: 1 + with_std]:
                    root.create_array(name, shape=shape, chunks=chunks, dtype="float32", fill_value=np.nan)
                (partial / RUN).write_text(json.dumps({"key": key}))
                partial.rename(path)  # a folder of this name is complete
            finally:
                discard(partial)
        return self

    def _key(self) -> str | None:
        """Key of the run that is here; None if there is none, or something that no run leaves."""
        try:
            check_harmless(self.path)
            return self._owner()
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _owner(self) -> str:
        return str(json.loads((self.path / RUN).read_text())["key"])

    @property
    def finished(self) -> Facts:
        """Genes that are here, each with what was recorded of it."""
        found: Facts = {}
        for file in (self.path / DONE).glob("*.json"):
            found |= {int(gene): facts for gene, facts in json.loads(file.read_text()).items()}
        return found

    def write(self, genes: np.ndarray, box: Box, mean: np.ndarray, std: np.ndarray | None, facts: Facts) -> None:
        """See :class:`~hadmst_sc.section.observation.MapSink`.

        Raises
        ------
        StaleError
            If another run has taken the folder since: a worker can outlive the run that it worked for.
        """
        with _writing:
            if self.key is not None and self._owner() != self.key:
                raise StaleError(f"{self.path} belongs to another run by now; these maps are not kept.")
            self._write(genes, box, mean, std, facts)

    def _write(self, genes: np.ndarray, box: Box, mean: np.ndarray, std: np.ndarray | None, facts: Facts) -> None:
        root = zarr.open_group(self.path / MAPS, mode="r+")
        in_a_row = np.split(np.arange(len(genes)), np.flatnonzero(np.diff(genes) != 1) + 1)
        for name, maps in (("mean", mean), ("std", std)):
            if maps is None:
                continue
            array = root[name]
            # Whole maps: a chunk that is written in parts is read again for each of them.
            whole = np.full((len(genes), *array.shape[1:]), np.nan, np.float32)
            whole[(slice(None), *box)] = maps
            for rows in in_a_row:  # zarr then packs their chunks side by side
                array[int(genes[rows[0]]) : int(genes[rows[-1]]) + 1] = whole[rows]
        file = self.path / DONE / f"{int(genes[0]):06d}.json"
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(facts))
        os.replace(partial, file)

    def link(self, images: Path, names: tuple[str, str]) -> None:
        """Make the maps those of images that were written hollow: files are linked, so that nothing is copied.

        Parameters
        ----------
        images
            Folder of the image elements.
        names
            Those of mean and standard deviation; the second need not be there.
        """
        for mine, name in zip(("mean", "std"), names, strict=True):
            if not (images / name).exists():
                continue
            source = self.path / MAPS / mine
            ((place, _),) = zarr.open_group(images / name, mode="r").arrays()
            target = images / name / place
            layout, described = (json.loads((array / ROOT).read_text()) for array in (source, target))
            # The names of its axes, for one, stay.
            (target / ROOT).write_text(json.dumps(described | {part: layout[part] for part in LAYOUT}))
            shutil.copytree(source / "c", target / "c", copy_function=_link, dirs_exist_ok=True)

    def remove(self) -> None:
        """Everything; lazy arrays of it are dead from then on."""
        with interrupts_held(), _writing:
            wait_for_zarr()
            discard(self.path)

    def maps(self) -> tuple[Any, Any]:
        """See :class:`~hadmst_sc.section.observation.MapSink`."""
        root = zarr.open_group(self.path / MAPS, mode="r")
        mean, std = (
            da.map_blocks(np.nan_to_num, da.from_zarr(root[name]), dtype=np.float32) if name in root else None
            for name in ("mean", "std")
        )
        return mean, std


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
    return target
