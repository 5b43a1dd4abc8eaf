"""Maps written to disk during a run: one chunk per gene, written by any process, kept if the run is interrupted.

The folder is scratch space next to a store. Its contents are valid only for the key of the run that made them: another
section, parameter or version of anything starts from the beginning.
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
from zarr.codecs import ZstdCodec

from hadmst_sc.io.contents import ROOT, check_harmless, discard
from hadmst_sc.io.lock import interrupts_held, wait_for_zarr
from hadmst_sc.section.errors import logger
from hadmst_sc.section.observation import Box, Facts

RUN, MAPS, DONE, STAGES = "run.json", "maps.zarr", "done", "stages"
EDGE = 1024  # bins along the side of a chunk
PACKED = ZstdCodec(level=1)  # as small as with zarr's level, in half the time
# Fields of an array's metadata that determine how its files are read.
LAYOUT = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")
# After an interrupt the thread that writes maps continues; it must not write after their removal.
_writing = threading.Lock()


class StaleError(RuntimeError):
    """The maps belong to a run that has ended."""


class MapStore:
    """A :class:`~hadmst_sc.section.observation.MapSink` in a folder; it can be sent to workers."""

    def __init__(self, path: Path, key: str | None = None) -> None:
        self.path, self.key = Path(path), key

    @classmethod
    def open(cls, path: Path, key: str, shape: tuple[int, int, int], *, with_std: bool) -> MapStore:
        """Continue an interrupted run with the same key, or start from the beginning.

        Parameters
        ----------
        path
            The folder; created if it does not exist.
        key
            Everything that the maps depend on, as one string.
        shape
            ``(genes, ny, nx)``.
        with_std
            True to store a standard deviation with each map.
        """
        self = cls(path, key)
        if os.path.lexists(path):
            if self._key() == key:
                logger.info("continuing an interrupted run: %d of %d genes are done", len(self.finished), shape[0])
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
                    kind: Any = {"dtype": "float32", "fill_value": np.nan, "compressors": PACKED}
                    root.create_array(name, shape=shape, chunks=chunks, **kind)
                (partial / RUN).write_text(json.dumps({"key": key}))
                partial.rename(path)  # a folder of this name is complete
            finally:
                discard(partial)
        return self

    @property
    def stages(self) -> Path:
        """Folder for the stages before the genes; it is removed with the maps."""
        return self.path / STAGES

    def _key(self) -> str | None:
        """Return the key of the run in this folder; None if there is none, or the folder was not made by a run."""
        try:
            check_harmless(self.path)
            return self._owner()
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _owner(self) -> str:
        return str(json.loads((self.path / RUN).read_text())["key"])

    @property
    def finished(self) -> Facts:
        """Genes that are finished, with the facts recorded for each."""
        found: Facts = {}
        for file in (self.path / DONE).glob("*.json"):
            found |= {int(gene): facts for gene, facts in json.loads(file.read_text()).items()}
        return found

    def write(self, genes: np.ndarray, box: Box, mean: np.ndarray, std: np.ndarray | None, facts: Facts) -> None:
        """See :class:`~hadmst_sc.section.observation.MapSink`.

        Raises
        ------
        StaleError
            If another run now uses the folder: a worker can outlive its run.
        """
        with _writing:
            if self.key is not None and self._owner() != self.key:
                raise StaleError(f"{self.path} now belongs to another run; these maps are discarded.")
            self._write(genes, box, mean, std, facts)

    def _write(self, genes: np.ndarray, box: Box, mean: np.ndarray, std: np.ndarray | None, facts: Facts) -> None:
        root = zarr.open_group(self.path / MAPS, mode="r+")
        in_a_row = np.split(np.arange(len(genes)), np.flatnonzero(np.diff(genes) != 1) + 1)
        for name, maps in (("mean", mean), ("std", std)):
            if maps is None:
                continue
            array = root[name]
            # Whole maps, because a chunk written in parts is read again for each part.
            whole = np.full((len(genes), *array.shape[1:]), np.nan, np.float32)
            whole[(slice(None), *box)] = maps
            for rows in in_a_row:  # zarr then compresses their chunks in parallel
                array[int(genes[rows[0]]) : int(genes[rows[-1]]) + 1] = whole[rows]
        file = self.path / DONE / f"{int(genes[0]):06d}.json"
        partial = file.with_suffix(f".{os.getpid()}.partial")
        partial.write_text(json.dumps(facts))
        os.replace(partial, file)

    def link(self, images: Path, names: tuple[str, str]) -> None:
        """Link the files of the maps into images that were written hollow, so that nothing is copied.

        Parameters
        ----------
        images
            Folder of the image elements.
        names
            Names of the images of mean and standard deviation; images that do not exist are skipped.
        """
        for mine, name in zip(("mean", "std"), names, strict=True):
            if not (images / name).exists():
                continue
            source = self.path / MAPS / mine
            ((place, _),) = zarr.open_group(images / name, mode="r").arrays()
            target = images / name / place
            layout, described = (json.loads((array / ROOT).read_text()) for array in (source, target))
            # Other fields, such as the names of the axes, stay.
            (target / ROOT).write_text(json.dumps(described | {part: layout[part] for part in LAYOUT}))
            shutil.copytree(source / "c", target / "c", copy_function=_link, dirs_exist_ok=True)

    def remove(self) -> None:
        """Delete the folder; lazy arrays that read from it become invalid."""
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
