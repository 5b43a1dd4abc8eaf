"""Super-resolution of a SpatialData object, which receives high-resolution tables and images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Unpack

from spatialdata import SpatialData

from hadmst_sc.alignment.record import Alignment
from hadmst_sc.inference.kept import Kept
from hadmst_sc.inference.predict import run as predict
from hadmst_sc.inference.progress import Progress, say
from hadmst_sc.inference.settings import SETTINGS, ImageFeatures, Settings, SettingsArguments
from hadmst_sc.io.given import check_sdata
from hadmst_sc.io.lock import StoreError, named
from hadmst_sc.io.maps import MapStore
from hadmst_sc.io.read import computed_here
from hadmst_sc.io.sections import SectionsArguments, is_several, sections_of
from hadmst_sc.io.store import claimed, scratch
from hadmst_sc.io.write import as_spatialdata, write_prediction
from hadmst_sc.runtime import torch_threads, usual_errors
from hadmst_sc.section.abundances import SPOTS
from hadmst_sc.section.arguments import ELEMENT, FLAG, parted, takes
from hadmst_sc.section.errors import Problems, logger
from hadmst_sc.section.observation import PROVENANCE_KEY
from hadmst_sc.tl._sections import (
    CALL,
    Output,
    Registered,
    Section,
    SectionProgress,
    costs_of,
    messages_of,
    read_sections,
    register,
)

BESIDE = {
    "key_added": (ELEMENT, "superres"),
    "overwrite": (FLAG, False),
    "copy": (FLAG, False),
    "show_progress_bar": (FLAG, True),
}
VERSIONS = ("hadmst_sc", "torch", "numpy", "spatialdata", "anndata")


class _Given(SectionsArguments, SettingsArguments, total=False):
    """Keyword arguments of :func:`superresolve` that it shares with others."""

    features: ImageFeatures | Sequence[ImageFeatures | None] | None  # type: ignore[misc]


@takes(SPOTS, SETTINGS, but=("window", "n_samples", "n_steps", "n_genes", "random_state", "cells"))
@usual_errors
def superresolve(
    sdata: SpatialData,
    image_key: str | Sequence[str],
    *,
    cells_key: str | Sequence[str | None] | None = None,
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

    For a list of images, each section is a run of its own, with the same genes; its result has the name
    ``superres-<section>``, where the section has the name of its spots. All sections are checked before the first is
    computed. If the run is stopped, the same call goes on: results that the same call has made are kept.

    Parameters
    ----------
    sdata
        One or more sections; changed in place unless ``copy``. If it is backed by a store, the result is written into
        it.
    image_key
        The H&E image, or a list with that of each section. Arguments about a section then take one value for all, or a
        list with one for each: ``table_key``, ``shapes_key``, ``coordinate_system``, ``layer``, ``spot_um``,
        ``pitch_um``, ``tissue_key``, ``obsm_key``, ``cells_key`` and ``features``.
    {shared}
    cells_key
        Cells or nuclei of the image, from any segmentation: shapes, points, or labels, such as those of
        :func:`hadmst_sc.pp.find_nuclei`. The spots decide how far expression follows them. The spots are then
        registered to the image, as with ``align="spots"``. See :func:`to_cells`.
    key_added
        Name of the result, or for a list of images the beginning of all names.
    overwrite
        Replace an earlier result of the same name. In a store, variables that point to the earlier result then read
        the new one: load them first, or pass another ``key_added`` to compare.
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

    Two sections in one object:

    >>> import spatialdata
    >>> other = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> sections = {"a": other, "b": spatialdata.deepcopy(other)}
    >>> both = spatialdata.concatenate(sections, concatenate_tables=True)
    >>> hd.tl.superresolve(both, ["phantom_full_image-a", "phantom_full_image-b"], **how)
    >>> both["superres-phantom-a"].shape, both["superres-phantom-b"].shape
    ((4, 30, 30), (4, 30, 30))
    """
    several = is_several(image_key)
    problems = Problems(f"cannot super-resolve {'these sections' if several else 'this section'}")
    check_sdata(sdata)
    spots, chosen = parted(given, SPOTS)
    each = spots | {"cells_key": cells_key, "features": chosen.pop("features", None)}
    asked = sections_of(image_key, each, problems)
    settings = Settings.of(chosen)
    settings.check(problems)
    beside = {"key_added": key_added, "overwrite": overwrite, "copy": copy, "show_progress_bar": show_progress_bar}
    wrong = problems.check(beside, BESIDE)
    output = Output(None if copy else sdata, key_added, overwrite, several, is_valid=not wrong)
    current: list[str] = [] if several else [key_added]
    done: list[str] = []
    features = each["features"]
    new = any(map(callable, features if isinstance(features, list | tuple) else [features]))
    told = _told_if_interrupted(output.target, current, done, new_each_time=new)
    with told, Progress(show=show_progress_bar) as progress:
        progress.at("read")
        sections, made = read_sections(sdata, asked, settings, output, problems, _version("hadmst_sc"))
        done += made
        if made:
            _announce(f"kept, as the same call has made them: {', '.join(made)}")
        if not sections:
            return None
        progress.at("cost")
        costs, cost = costs_of(sections, output)
        _announce(f"super-resolving {f'{len(sections)} sections ' if several else ''}takes {cost}")
        if several:
            after = [of_section.stages | {"align": 0.0} for of_section in costs]  # all are registered first
            seconds = {section.key: sum(stages.values()) for section, stages in zip(sections, after, strict=True)}
            progress.plan({"align": cost.stages["align"], **seconds})
            sections = register(sections, output, progress, problems)
        else:
            progress.plan(cost.stages)
        copies = []
        for i, section in enumerate(sections):
            current[:] = [section.key]
            bar = SectionProgress(progress, section, after[i]) if several else progress
            with messages_of(section.key if several else ""):
                found = _compute(sdata, section, output, bar)
            copies += [found] if found is not None else []
            done += [section.key] if not copy else []
    return _together(copies) if copy else None


def _announce(text: str) -> None:
    logger.info(text)
    say(text)


def _compute(sdata: SpatialData, section: Section, output: Output, progress: Progress) -> SpatialData | None:
    """Predict a section and write the result; if it is to be a copy, return it."""
    obs, settings, n = section.obs, section.settings, section.n_genes
    source = obs.source
    assert source is not None  # read_observation always names its source
    with ExitStack() as stack:
        store, kept = None, Kept()
        if output.is_backed:
            shape = (n, *obs.grid.shape)
            maps = _maps_on_disk(sdata, section.key, section.run_key, shape, with_std=settings.with_std)
            store = stack.enter_context(maps)
            kept = Kept(store.stages, section.run_key)
        with torch_threads(settings.n_jobs):
            prediction = predict(obs, settings, store, progress, Registered(kept, section.registered))
        moved = prediction.provenance["registration"]
        if prediction.provenance["align"] is True and moved["applied"]:
            _announce(
                f"the H&E was off its spots and moved to them: {Alignment.from_record(moved).description}. The result "
                f"lies on the spots; with `align='spots'` it lies on the H&E"
            )
        read_from = asdict(source) | {"obsm_key": section.obsm_key}
        facts = {
            **{key: value for key, value in read_from.items() if value is not None},
            "bin_um": obs.grid.bin_um,
            "px_per_bin": obs.grid.px_per_bin,
            "um_per_px": obs.grid.um_per_px,
            "he_um": obs.he_um,
            "n_spots": len(obs.spots),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds_read": round(section.seconds["read"], 3),
            "versions": {name: _version(name) for name in VERSIONS},
            CALL: section.call,
        }
        stats = prediction.gene_stats | {"spot_counts": obs.counts[:, :n].sum(0, dtype=float)}
        prediction = replace(prediction, gene_stats=stats, provenance=facts | prediction.provenance)
        if output.target is None:
            return as_spatialdata(sdata, prediction, source, section.key)
        with computed_here():
            write_prediction(sdata, prediction, source, key_added=section.key, overwrite=output.overwrite, maps=store)
        return None


def _together(copies: Sequence[SpatialData]) -> SpatialData:
    """One object of the results of all sections."""
    elements = {name: element for one in copies for _, name, element in one.gen_elements()}
    runs = {key: record for one in copies for key, record in one.attrs[PROVENANCE_KEY].items()}
    return SpatialData.init_from_elements(elements, attrs={PROVENANCE_KEY: runs})


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
def _told_if_interrupted(
    target: SpatialData | None, current: Sequence[str], done: Sequence[str], *, new_each_time: bool
) -> Iterator[None]:
    """After Ctrl-C, say what is kept, and how to go on.

    Parameters
    ----------
    target
        Object that receives the results; ``None`` for a copy.
    current
        Name of the result that is being computed.
    done
        Names of finished results.
    new_each_time
        True if ``features`` is a function, which cannot be compared with that of another call.
    """
    try:
        yield
    except KeyboardInterrupt:
        path = None if target is None else target.path
        folder = None if path is None or not current else scratch(path, current[0])
        if done:
            then = "" if new_each_time else " The same call goes on with the other sections."
            say(f"interrupted: finished and kept are {', '.join(done)}.{then}")
        if new_each_time:
            say(
                "interrupted: the same call starts from the beginning, because `features` is a function. Pass the "
                "array that it returns: such a call can be resumed."
            )
        elif folder is not None and folder.is_dir():
            n = len(MapStore(folder).finished)
            say(
                f"interrupted: finished stages and {n} finished gene{'s' * (n != 1)} are kept in {folder}. The same "
                f"call resumes from there; to give up, delete that folder."
            )
        elif path is not None and not done:
            say("interrupted: nothing is kept, because no stage was finished.")
        elif not done:
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
