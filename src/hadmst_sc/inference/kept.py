"""Results of the stages before the genes, kept beside the maps of a run, so that a resumed run repeats none of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from hadmst_sc.distillation.components import Components
from hadmst_sc.regression.stacking import Stacked
from hadmst_sc.section.errors import logger

SPARSE = ("data", "indices", "indptr")  # parts of a sparse matrix


class Kept:
    """A folder with one file per stage, valid for one run.

    Parameters
    ----------
    folder
        Created when the first stage is kept; ``None`` keeps nothing.
    key
        Key of the run; files of another run are ignored.
    """

    def __init__(self, folder: Path | None = None, key: str = "") -> None:
        self.folder, self.key = folder, key

    def __contains__(self, stage: str) -> bool:
        return self.folder is not None and self._file(stage).is_file()

    def __call__(self, stage: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Result of a stage, arrays and what JSON can hold: read from its file, else made and kept."""
        found = self._read(stage) if stage in self else None
        if found is None:
            found = make()
            if self.folder is not None:
                self._write(stage, found)
        return found

    def _file(self, stage: str) -> Path:
        assert self.folder is not None  # for types
        return self.folder / f"{stage}.npz"

    def _read(self, stage: str) -> dict[str, Any] | None:
        try:
            with np.load(self._file(stage)) as stored:  # checks a sum of each array
                arrays = {name: stored[name] for name in stored.files}
            described = json.loads(arrays.pop("described").item())
            if described["key"] != self.key:
                raise ValueError("it belongs to another run")
            return dict(described["facts"]) | arrays
        except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
            logger.warning("%s is ignored, and computed again: %s", self._file(stage), error)
            return None

    def _write(self, stage: str, found: dict[str, Any]) -> None:
        arrays: dict[str, Any] = {name: value for name, value in found.items() if isinstance(value, np.ndarray)}
        facts = {name: value for name, value in found.items() if name not in arrays}
        file = self._file(stage)
        partial = file.with_suffix(".partial")
        try:
            file.parent.mkdir(exist_ok=True)
            with partial.open("wb") as stream:
                np.savez(stream, described=json.dumps({"key": self.key, "facts": facts}), **arrays)
            os.replace(partial, file)
        except OSError as error:
            logger.warning("%s cannot be written (%s): if the run is interrupted, this is computed again", file, error)
            partial.unlink(missing_ok=True)


def packed(section: Components) -> dict[str, Any]:
    """Components as arrays and numbers."""
    spread = {f"spread_{part}": getattr(section.spread, part) for part in SPARSE}
    stack = {} if section.stack is None else {f"stack_{name}": one for name, one in section.stack._asdict().items()}
    plain = {name: value for name, value in vars(section).items() if name not in ("spread", "stack")}
    return plain | spread | stack


def unpacked(found: dict[str, Any]) -> Components:
    """Inverse of :func:`packed`; other entries are ignored."""
    shape = int(found["active"].sum()), len(found["scores"])
    plain = {name: found[name] for name in Components.__dataclass_fields__ if name not in ("spread", "stack")}
    return Components(
        **plain,
        spread=sparse.csr_matrix(tuple(found[f"spread_{part}"] for part in SPARSE), shape),
        stack=Stacked(found["stack_maps"], found["stack_held_out"]) if "stack_maps" in found else None,
    )
