"""Write a result to its own store, and check the path that it may replace."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from spatialdata import SpatialData

from hadmst_sc.io.contents import KINDS, ROOT, discard, elements_on_disk, runs_of
from hadmst_sc.io.lock import beside, home, interrupts_held, locked
from hadmst_sc.io.store import kinds_of, write_all


def check_free(output: Path, *, overwrite: bool, source: Path | None = None, also: Collection[str] = ()) -> None:
    """Refuse a path that shares files with the input, or that holds anything but results of this package.

    Parameters
    ----------
    output
        Path of the new store.
    overwrite
        True to replace results of an earlier run, and nothing else.
    source
        The store that is read.
    also
        Names of other elements that may be replaced together with the results.

    Raises
    ------
    ValueError
        If the path cannot be used.
    """
    if source is not None and (_is_within(output, source) or _is_within(source, output)):
        raise ValueError(
            f"`--output` needs a path neither inside the input nor above it, but {output} and {source} share files. "
            f"Inputs are never replaced. Pass `--output {Path(source.name).stem}_superres.zarr`."
        )
    output = home(output)
    if not output.exists() and beside(output, "old").is_dir():
        os.rename(beside(output, "old"), output)  # a run was killed between its two renames
    if not output.exists():
        return
    if not any((output / mark).exists() for mark in (ROOT, ".zgroup")):
        raise ValueError(f"`--output` needs a free path or a zarr store, but {output} is neither. Choose another path.")
    runs = runs_of(output) if (output / ROOT).exists() else {}
    ours = {(kind, name) for key in runs for name, kind in kinds_of(key).items()}
    others = [f"{kind}/{name}" for kind, name in sorted(elements_on_disk(output) - ours) if name not in also]
    others += sorted({one.name for one in output.iterdir()} - {ROOT, *KINDS})
    if not runs or others:
        found = ", ".join(others[:5]) or "no result"
        raise ValueError(
            f"`--output` needs a free path or a store with nothing but results, but {output} holds {found}. Only "
            f"results of earlier runs are ever replaced. Choose another path."
        )
    if not overwrite:
        raise ValueError(f"`--output` needs a free path, but {output} exists. Try `--overwrite`.")


def write_whole(sdata: SpatialData, output: Path, *, overwrite: bool, also: Collection[str] = ()) -> None:
    """Write next to the path, then rename: at any time either the old or the new store is complete.

    Parameters
    ----------
    sdata
        Object to write.
    output, overwrite, also
        As for :func:`check_free`, which is called again, because hours may have passed.
    """
    output = home(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    new, old = beside(output, "new"), beside(output, "old")
    with locked(output), interrupts_held() as let_through:
        check_free(output, overwrite=overwrite, also=also)
        discard(new)
        discard(old)
        try:
            write_all(sdata, new)
            let_through()
            if output.exists():
                os.rename(output, old)
            os.rename(new, output)
        finally:
            discard(new)
        discard(old)


def _is_within(inner: Path, outer: Path) -> bool:
    """Return True if a path is the same as another or below it, with links resolved."""
    inner = home(inner)
    return outer.exists() and any(one.exists() and one.samefile(outer) for one in (inner, *inner.parents))
