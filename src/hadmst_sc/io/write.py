"""Write results: elements and provenance into an object and its store, or a store of their own; all or nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from spatialdata import SpatialData

from hadmst_sc.io.abundances import with_types
from hadmst_sc.io.contents import KINDS, ROOT, discard, elements_on_disk, reread, reread_table, runs_of
from hadmst_sc.io.elements import bins_table, plain, pyramid_steps, raster_elements
from hadmst_sc.io.given import check_sdata
from hadmst_sc.io.lock import WAIT, beside, home, interrupts_held, locked
from hadmst_sc.io.maps import MapStore
from hadmst_sc.io.result import free_key
from hadmst_sc.io.store import check_room, claimed, kinds_of, recover, replace_on_disk, write_all
from hadmst_sc.section.arguments import is_element_name
from hadmst_sc.section.observation import PROVENANCE_KEY, OutputNames, Prediction, Source

MAX_IN_MEMORY = 2 * 10**9  # bytes
IN_MEMORY = "is", "Call `sdata.write('section.zarr'); sdata = spatialdata.read_zarr('section.zarr')` first"
COPIED = "`copy=True` (in a shell `--output`) keeps it", "Leave that out, so that the result goes into the store"
MAX_ROWS = 2 * 10**6  # tables are never lazy
PACKED = 0.25  # size of the best-compressed maps on disk, as a share of the bytes in tissue


def check_output(sdata: SpatialData, key_added: str, *, overwrite: bool) -> None:
    """Refuse names that cannot or must not be written, before anything is computed.

    Parameters
    ----------
    sdata
        Object to write to.
    key_added
        Name of the result.
    overwrite
        True to replace the result of an earlier run under ``key_added``, and nothing else.

    Raises
    ------
    ValueError
        If the name is invalid, taken, or that of an input.
    OSError
        If another run is writing this result, or the store is read-only or missing.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> hd.io.check_output(sdata, "superres", overwrite=False)  # free
    >>> hd.io.check_output(sdata, "table", overwrite=False)
    Traceback (most recent call last):
    ValueError: `key_added='table'` needs names that are free, but the object has tables/table. ...
    """
    check_sdata(sdata)
    _check_name(key_added)
    runs = sdata.attrs.get(PROVENANCE_KEY, {})
    if not isinstance(runs, dict):
        raise ValueError(
            f"`sdata.attrs[{PROVENANCE_KEY!r}]` needs to be a dictionary of runs, or absent, but is a "
            f"{type(runs).__name__}. It stores the provenance of runs. Call `sdata.attrs['{PROVENANCE_KEY}_input'] = "
            f"sdata.attrs.pop({PROVENANCE_KEY!r})`."
        )
    if sdata.is_backed():
        recover(sdata.path, key_added)
    names = OutputNames(key_added)
    kinds = kinds_of(key_added)
    taken = {name: kind for kind, name in _elements(sdata) if name.lower() in {own.lower() for own in kinds}}
    if not taken:
        return
    ours = _is_ours(sdata, names) and all(kinds.get(name) == kind for name, kind in taken.items())
    if overwrite and ours:
        return
    found = ", ".join(f"{kind}/{name}" for name, kind in taken.items())
    if overwrite:
        raise ValueError(
            f"`key_added={key_added!r}` would overwrite {found}, which no earlier run wrote. Inputs are never "
            f"replaced. Pass another name, such as `key_added={free_key(sdata, key_added)!r}`."
        )
    raise ValueError(
        f"`key_added={key_added!r}` needs names that are free, but the object has {found}. "
        f"Pass another name, such as `key_added={free_key(sdata, key_added)!r}`"
        f"{', or `overwrite=True` to replace the earlier result' if ours else ''}."
    )


def _check_name(key_added: str) -> None:
    if not is_element_name(key_added):
        raise ValueError(
            f"`key_added` needs letters, digits, '_', '-' and '.', not starting with '.' or '__', but is "
            f"{key_added!r}. It is part of the names of the new elements. Pass `key_added='superres'`."
        )


def check_size(sdata: SpatialData | None, n_genes: int, n_bins: int, n_inside: int, *, with_std: bool) -> None:
    """Refuse results too large for memory or disk; cheap, so that it can be called before hours of computation.

    Parameters
    ----------
    sdata
        Object to write to; ``None`` for a result that stays in memory.
    n_genes
        Number of maps.
    n_bins, n_inside
        Number of bins of the grid, and of those in tissue (rows of the table).
    with_std
        True if each map has a standard deviation.

    Raises
    ------
    ValueError
        If the table has too many rows, or the result is too large for memory and ``sdata`` is not backed.
    OSError
        If the disk of the store has no room for it.

    Examples
    --------
    >>> sizes = {"n_bins": 650**2, "n_inside": 300_000, "with_std": True}
    >>> hd.io.check_size(None, 200, **sizes)  # fits
    >>> hd.io.check_size(None, 2000, **sizes)
    Traceback (most recent call last):
    ValueError: `sdata` needs to be backed by a store for a result of 11.6 GB ...
    """
    if n_inside > MAX_ROWS:
        raise ValueError(
            f"`bin_um` needs to leave at most {MAX_ROWS:,} bins in tissue, but there are {n_inside:,}. Tables are "
            f"never lazy. Pass a larger `bin_um=`, or a `tissue_key=` that marks a part."
        )
    n_bytes = 4 * n_genes * (n_bins + n_inside) * (1 + with_std)
    if n_bytes > MAX_IN_MEMORY and not (sdata is not None and sdata.is_backed()):
        kept, remedy = COPIED if sdata is None else IN_MEMORY
        raise ValueError(
            f"`sdata` needs to be backed by a store for a result of {n_bytes / 1e9:.1f} GB ({n_genes:,} genes x "
            f"{n_bins:,} bins), but {kept} in memory, where {MAX_IN_MEMORY / 1e9:.0f} GB are the limit. {remedy}, or "
            f"pass fewer `genes=` or a larger `bin_um=`."
        )
    if sdata is not None and sdata.is_backed():
        check_room(sdata.path, PACKED * 8 * n_genes * n_inside * (1 + with_std))


def as_spatialdata(
    sdata: SpatialData, prediction: Prediction, source: Source, key_added: str = "superres"
) -> SpatialData:
    """Return the new elements alone, as a separate object.

    Parameters
    ----------
    sdata
        The object that the observation was read from; not changed.
    prediction
        Maps of one section.
    source
        Keys of the elements that they were made from.
    key_added
        Name of the result.

    Returns
    -------
    Image, standard deviation if there is one, labels and table.

    Raises
    ------
    ValueError
        If the result is too large for memory.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> obs = hd.io.read_observation(sdata, "phantom_full_image", bin_um=20.0)
    >>> new = hd.io.as_spatialdata(sdata, hd.tl.predict(obs, model=None), obs.source)
    >>> list(new.images), list(new.labels), list(new.tables)
    (['superres', 'superres_std'], ['superres_bins'], ['superres_table'])
    """
    check_sdata(sdata)
    check_size(None, *_sizes(prediction), with_std=prediction.std is not None)
    return _as_spatialdata(sdata, prediction, source, OutputNames(key_added))


def write_prediction(
    sdata: SpatialData,
    prediction: Prediction,
    source: Source,
    *,
    key_added: str = "superres",
    overwrite: bool = False,
    maps: MapStore | None = None,
) -> None:
    """Write a prediction into the object that was read, and into its store if it has one.

    Everything is computed, and for a backed object written next to the store, before the first element is changed; then
    folders are renamed. A crash leaves the old result or the new one. Ctrl-C waits until no file is being written.

    Parameters
    ----------
    sdata
        The object that was read.
    prediction
        Maps of one section.
    source
        Keys of the elements that they were made from.
    key_added
        Name of the result.
    overwrite
        Replace the result of an earlier run of the same name.
    maps
        Maps of ``prediction`` on disk; they are linked into the store instead of copied, and then removed.

    Raises
    ------
    ValueError
        As for :func:`check_output` and :func:`check_size`.
    OSError
        As for these, and if another write into the same store does not finish within a minute.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> obs = hd.io.read_observation(sdata, "phantom_full_image", bin_um=20.0)
    >>> found = hd.tl.predict(obs, model=None)
    >>> hd.io.write_prediction(sdata, found, obs.source)
    >>> "superres" in sdata.images, "superres_table" in sdata.tables
    (True, True)
    """
    check_sdata(sdata)
    if not sdata.is_backed():
        check_output(sdata, key_added, overwrite=overwrite)
        new = as_spatialdata(sdata, prediction, source, key_added)
        _take(sdata, {name: new[name] for name in kinds_of(key_added) if name in new}, key_added, new.attrs)
        return
    _check_name(key_added)  # it becomes part of the name of the lock
    with claimed(sdata.path, key_added, WAIT), interrupts_held() as let_through:
        check_output(sdata, key_added, overwrite=overwrite)
        check_size(sdata, *_sizes(prediction), with_std=prediction.std is not None)
        _write_backed(sdata, prediction, source, OutputNames(key_added), maps, let_through)
        if maps is not None:
            maps.remove()


def _write_backed(
    sdata: SpatialData,
    prediction: Prediction,
    source: Source,
    names: OutputNames,
    maps: MapStore | None,
    let_through: Callable[[], None],
) -> None:
    hollow = maps is not None and not pyramid_steps(prediction.grid.shape)
    new = _as_spatialdata(sdata, prediction, source, names, hollow=hollow)
    kinds = {name: kind for name, kind in kinds_of(names.image).items() if name in new}
    fill = partial(maps.link, names=(names.image, names.std)) if maps is not None and hollow else None
    with replace_on_disk(Path(sdata.path), new, names.image, fill, let_through):
        # Read back: elements in memory would keep a second copy, and lazy ones would be recomputed at each use.
        elements = reread(sdata.path, [name for name, kind in kinds.items() if kind != "tables"])
        elements[names.table] = new[names.table]
        if isinstance(prediction.mean, da.Array):
            elements[names.table] = reread_table(sdata.path, names.table, elements[names.table])
        _take(sdata, elements, names.image, {PROVENANCE_KEY: runs_of(sdata.path)})


def _take(sdata: SpatialData, elements: dict[str, Any], key_added: str, attrs: dict[str, Any]) -> None:
    """Replace the elements and provenance of an earlier result by new ones; all or nothing."""
    kinds = kinds_of(key_added)
    containers = {kind: getattr(sdata, kind) for kind in dict.fromkeys(kinds.values())}
    before, runs = {kind: dict(one.data) for kind, one in containers.items()}, sdata.attrs
    with interrupts_held():
        try:
            for name in kinds:
                if name in sdata:
                    del sdata[name]
            for name, element in elements.items():
                sdata[name] = element
            together = {**runs.get(PROVENANCE_KEY, {}), **attrs[PROVENANCE_KEY]}
            sdata.attrs = {**runs, PROVENANCE_KEY: together}  # a new dict: subsets share the old one
        except BaseException:
            for name, kind in kinds.items():
                containers[kind].pop(name, None)
                if name in before[kind]:
                    containers[kind][name] = before[kind][name]
            for kind, elements_before in before.items():
                containers[kind].data = elements_before  # restores their order
            sdata.attrs = runs
            raise


def _as_spatialdata(
    sdata: SpatialData, prediction: Prediction, source: Source, names: OutputNames, *, hollow: bool = False
) -> SpatialData:
    read = with_types(sdata, source.table_key, prediction.provenance.get("obsm_key"))
    rasters = raster_elements(sdata, prediction, source, names, hollow=hollow)
    return SpatialData(
        images={name: one for name, one in rasters.items() if name != names.bins},
        labels={names.bins: rasters[names.bins]},
        tables={names.table: bins_table(read, prediction, source, names)},
        attrs={PROVENANCE_KEY: {names.image: plain(prediction.provenance)}},
    )


def _sizes(prediction: Prediction) -> tuple[int, int, int]:
    return len(prediction.genes), prediction.grid.n_bins, int(np.count_nonzero(prediction.inside))


def _elements(sdata: SpatialData) -> set[tuple[str, str]]:
    """Return type and name of every element, in memory or only on disk."""
    found = {(kind, name) for kind in KINDS for name in getattr(sdata, kind)}
    return found | (elements_on_disk(sdata.path) if sdata.is_backed() else set())


def _is_ours(sdata: SpatialData, names: OutputNames) -> bool:
    """Return True if a run wrote a result of this name, through this object or another one of the same store."""
    table = sdata.tables.get(names.table)
    if names.image in sdata.attrs.get(PROVENANCE_KEY, {}) or (table is not None and PROVENANCE_KEY in table.uns):
        return True
    return sdata.is_backed() and (
        names.image in runs_of(sdata.path)
        or (Path(sdata.path) / "tables" / names.table / "uns" / PROVENANCE_KEY).is_dir()
    )


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
