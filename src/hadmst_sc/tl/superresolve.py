"""Super-resolution of a SpatialData object, which receives a high-resolution table and image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Unpack

from hadmst_sc.inference.cost import cost_of
from hadmst_sc.inference.kept import Kept
from hadmst_sc.inference.predict import run as predict
from hadmst_sc.inference.progress import Progress, say
from hadmst_sc.inference.settings import SETTINGS, Settings, SettingsArguments, run_key
from hadmst_sc.io.abundances import read_spots
from hadmst_sc.io.cells import cells_of
from hadmst_sc.io.lock import StoreError, named
from hadmst_sc.io.maps import MapStore
from hadmst_sc.io.panel import with_other_genes
from hadmst_sc.io.read import computed_here
from hadmst_sc.io.store import claimed, kinds_of, scratch
from hadmst_sc.io.write import as_spatialdata, check_output, check_size, write_prediction
from hadmst_sc.runtime import torch_threads, usual_errors
from hadmst_sc.section.abundances import SPOTS, SpotsArguments
from hadmst_sc.section.arguments import ELEMENT, FLAG, TEXT, optional, parted, takes
from hadmst_sc.section.errors import Problems, logger

if TYPE_CHECKING:
    from spatialdata import SpatialData


BESIDE = {
    "cells_key": (optional(TEXT), None),
    "key_added": (ELEMENT, "superres"),
    "overwrite": (FLAG, False),
    "copy": (FLAG, False),
    "show_progress_bar": (FLAG, True),
}
VERSIONS = ("hadmst_sc", "torch", "numpy", "spatialdata", "anndata")


class _Given(SpotsArguments, SettingsArguments, total=False):
    """Keyword arguments of :func:`superresolve` that it shares with others."""


@takes(SPOTS, SETTINGS, but=("window", "n_samples", "n_steps", "n_genes", "random_state", "cells"))
@usual_errors
def superresolve(
    sdata: SpatialData,
    image_key: str,
    *,
    cells_key: str | None = None,
    key_added: str = "superres",
    overwrite: bool = False,
    copy: bool = False,
    show_progress_bar: bool = True,
    **given: Unpack[_Given],
) -> SpatialData | None:
    """Super-resolve spots onto a fine grid with the help of the H&E.

    Adds to ``sdata`` (names for the default ``key_added``):

    - image ``superres``: ``(gene, y, x)`` float32, expected counts per bin, NaN outside the tissue;
    - image ``superres_std``: standard deviation of the error, unless ``with_std=False``;
    - labels ``superres_bins``: the id of each bin in tissue;
    - table ``superres_table``: one row per bin in tissue, ready for scanpy and squidpy.

    Parameters
    ----------
    sdata
        One or more sections; changed in place unless ``copy``. If it is backed by a store, the result is written into
        it.
    image_key
        The H&E image.
    {shared}
    cells_key
        Cells or nuclei of the image, from any segmentation: shapes, points, or labels, such as those of
        :func:`hadmst_sc.pp.find_nuclei`. The spots decide how far expression follows them. The spots are then
        registered to the image, as with ``align="spots"``. See :func:`to_cells`.
    key_added
        Name of the result.
    overwrite
        Replace an earlier result of the same name.
    copy
        Return the new elements as a new object and leave ``sdata`` unchanged.
    show_progress_bar
        Show a progress bar with the current stage and the time left; in a log file, a line every 30 s.

    Returns
    -------
    ``None``, or with ``copy`` a SpatialData of the new elements.

    Raises
    ------
    KeyError
        If a key is missing; the message lists the available ones.
    ContractError
        If arguments and section have several problems; the message lists all of them, each with its remedy.
    ValueError
        If an argument has a wrong type or value. No error changes ``sdata``.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> how = {"bin_um": 20.0, "show_progress_bar": False}
    >>> hd.tl.superresolve(sdata, "phantom_full_image", **how)
    >>> sdata["superres"].shape
    (4, 30, 30)
    >>> sdata.tables["superres_table"].layers["std"].shape[1]
    4
    """
    problems = Problems("cannot super-resolve this section")
    section, chosen = parted(given, SPOTS)
    settings = Settings.of(chosen)
    settings.check(problems)
    beside = {
        "cells_key": cells_key,
        "key_added": key_added,
        "overwrite": overwrite,
        "copy": copy,
        "show_progress_bar": show_progress_bar,
    }
    if not problems.check(beside, BESIDE) and not copy:
        with problems.gathered(ValueError, OSError):
            check_output(sdata, key_added, overwrite=overwrite)
    target = None if copy else sdata
    with _told_if_interrupted(target, key_added), Progress(show=show_progress_bar) as progress:
        progress.at("read")
        obs = read_spots(sdata, image_key, **section, problems=problems)
        if cells_key is not None and cells_key in kinds_of(str(key_added)):
            problems.add(
                f"`cells_key={cells_key!r}` is a part of the result that `key_added={key_added!r}` replaces. Pass "
                f"another `key_added`, such as {key_added + '_cells'!r}.",
                ValueError,
            )
        elif cells_key is not None:
            settings = replace(settings, cells=cells_of(sdata, cells_key, obs, problems))
        settings.check_with(obs, problems)
        with problems.gathered(ValueError, OSError):
            sizes = {"n_bins": obs.grid.n_bins, "n_inside": int(obs.inside.sum())}
            check_size(target, len(obs.genes), **sizes, with_std=settings.with_std)
        problems.raise_if_any()
        whole = with_other_genes(sdata, obs, section.get("obsm_key"))
        progress.at("cost")
        settings = replace(settings.loaded(), n_genes=len(obs.genes))
        backed = target is not None and target.is_backed()
        cost = cost_of(whole, settings, backed=backed)
        announcement = f"super-resolving takes {cost}"
        logger.info(announcement)
        say(announcement)
        progress.plan(cost.stages)
        with ExitStack() as stack:
            store = kept = None
            if backed:
                key = run_key(whole, settings, _version("hadmst_sc"))
                shape = (len(obs.genes), *obs.grid.shape)
                store = stack.enter_context(_maps_on_disk(sdata, key_added, key, shape, with_std=settings.with_std))
                kept = Kept(store.stages, key)
            with torch_threads(settings.n_jobs):
                prediction = predict(whole, settings, store, progress, kept)
            assert obs.source is not None  # read_observation always names its source
            read_from = asdict(obs.source) | {"obsm_key": section.get("obsm_key")}
            facts = {
                **{key: value for key, value in read_from.items() if value is not None},
                "bin_um": obs.grid.bin_um,
                "px_per_bin": obs.grid.px_per_bin,
                "um_per_px": obs.grid.um_per_px,
                "he_um": obs.he_um,
                "n_spots": len(obs.spots),
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds_read": round(progress.seconds["read"], 3),
                "versions": {name: _version(name) for name in VERSIONS},
            }
            stats = prediction.gene_stats | {"spot_counts": obs.counts.sum(0, dtype=float)}
            prediction = replace(prediction, gene_stats=stats, provenance=facts | prediction.provenance)
            if copy:
                return as_spatialdata(sdata, prediction, obs.source, key_added)
            with computed_here():
                write_prediction(sdata, prediction, obs.source, key_added=key_added, overwrite=overwrite, maps=store)
            return None


@contextmanager
def _maps_on_disk(
    sdata: SpatialData, key_added: str, key: str, shape: tuple[int, int, int], *, with_std: bool
) -> Iterator[MapStore]:
    """Scratch maps next to the store, locked for this result against other runs; kept if the run can be resumed."""
    assert sdata.path is not None  # for types
    with claimed(sdata.path, key_added), named(sdata.path):
        store = MapStore.open(scratch(sdata.path, key_added), key, shape, with_std=with_std)
        try:
            with named(sdata.path):
                yield store
        except BaseException as error:
            stopped = not isinstance(error, Exception)  # by the user, who may go on: also without a gene
            if isinstance(error, StoreError) or not (store.finished or (stopped and store.stages.is_dir())):
                store.remove()  # not without disk space or store
            raise


@contextmanager
def _told_if_interrupted(target: SpatialData | None, key_added: str) -> Iterator[None]:
    """After Ctrl-C, say in one line what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        path = None if target is None else target.path
        folder = None if path is None else scratch(path, key_added)
        if folder is not None and folder.is_dir():
            n = len(MapStore(folder).finished)
            say(
                f"interrupted: finished stages and {n} finished gene{'s' * (n != 1)} are kept in {folder}. The same "
                f"call resumes from there; to give up, delete that folder."
            )
        elif folder is not None:
            say("interrupted: nothing is kept, because no stage was finished.")
        else:
            say(
                "interrupted: nothing is kept, because the result was not going to a store. Runs on a section that was "
                "read from a store can be resumed: `sdata.write('section.zarr'); "
                "sdata = spatialdata.read_zarr('section.zarr')`."
            )
        raise


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
