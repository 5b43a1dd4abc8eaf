"""The sections of a run: read and checked together, registered before the first is computed, shown on one bar."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile
from logging import LogRecord
from typing import Any

import numpy as np
from spatialdata import SpatialData

from hadmst_sc.alignment.record import Alignment
from hadmst_sc.alignment.register import turned
from hadmst_sc.inference.cost import Cost, cost_of
from hadmst_sc.inference.kept import Kept
from hadmst_sc.inference.prepare import registration
from hadmst_sc.inference.progress import Progress
from hadmst_sc.inference.settings import Settings, features_problem, run_key
from hadmst_sc.io.abundances import read_spots
from hadmst_sc.io.cells import cells_of
from hadmst_sc.io.maps import STAGES
from hadmst_sc.io.panel import with_other_genes
from hadmst_sc.io.resolve import affine, systems
from hadmst_sc.io.result import Result
from hadmst_sc.io.sections import Asked, held, settle, tell_together
from hadmst_sc.io.store import kinds_of, scratch
from hadmst_sc.io.write import check_output, check_size
from hadmst_sc.section.arguments import ELEMENT, TEXT, optional
from hadmst_sc.section.errors import Problems, logger
from hadmst_sc.section.features import he_features
from hadmst_sc.section.observation import PROVENANCE_KEY, Observation, OutputNames

CALL = "call"  # entry of the provenance: digest of all that the maps depend on


@dataclass(frozen=True, eq=False)
class Output:
    """Destination of a run.

    Parameters
    ----------
    target
        Object that receives the results; ``None`` for a copy.
    key_added
        Name of the result, or of all results in front of the names of their sections.
    overwrite
        Replace earlier results.
    several
        True for a list of images.
    is_valid
        False if the arguments above are not, which is told already.
    """

    target: SpatialData | None
    key_added: str
    overwrite: bool
    several: bool
    is_valid: bool = True

    @property
    def is_backed(self) -> bool:
        """True if results go to a store."""
        return self.target is not None and self.target.is_backed()

    def key_of(self, shapes_key: object) -> str | None:
        """Name of the result of a section, which has the name of its spots; ``None`` if they are not known."""
        if not self.several:
            return self.key_added
        return f"{self.key_added}-{shapes_key}" if TEXT.is_met(shapes_key) else None


@dataclass(frozen=True, eq=False)
class Section:
    """One section of a run, read and checked.

    Parameters
    ----------
    image_key
        Its H&E.
    key
        Name of its result.
    obs
        The section; behind the genes of the run stand others, for its components.
    settings
        Its settings, with loaded weights; ``n_genes`` are those of the run.
    run_key
        Key of everything that its maps depend on.
    place
        Coordinate system of the run, and the affine of the image to each of its systems: where the result lies.
    obsm_key
        Abundances that were read in place of genes.
    seconds
        Time of the stages that are done.
    registered
        Its registration, if that is done.
    """

    image_key: str
    key: str
    obs: Observation
    settings: Settings
    run_key: str = ""
    place: str = ""
    obsm_key: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    registered: Mapping[str, Any] | None = None

    @property
    def n_genes(self) -> int:
        """Number of genes of the run."""
        return self.settings.n_genes or len(self.obs.genes)

    @property
    def call(self) -> str:
        """Entry of the provenance; equal if the same call was made with the same data at the same place."""
        return hashlib.sha256((self.run_key + self.place).encode()).hexdigest()


def read_sections(
    sdata: SpatialData, asked: list[Asked], settings: Settings, output: Output, problems: Problems, version: str
) -> tuple[list[Section], list[str]]:
    """Read all sections, and raise the problems of all of them together.

    Parameters
    ----------
    sdata
        Holds them.
    asked
        Their images, each with ``cells_key``, ``features`` and the arguments of its spots.
    settings
        Settings that all share, checked by the caller.
    output
        Destination of the results.
    problems
        Problems that the caller has found so far.
    version
        Version of the package.

    Returns
    -------
    Sections to compute, and the names of results that the same call has made before.
    """
    if output.several:
        settle(sdata, asked, problems)
    images, read = [one.image_key for one in asked], []
    own, taken = ([Problems(problems.what) for _ in asked] for _ in range(2))
    for one, mine, names in zip(asked, own, taken, strict=True):
        _check_name(sdata, output.key_of(one.given.get("shapes_key")), output, names)
        with held(mine), messages_of(one.image_key if output.several else ""):
            read.append(_read(sdata, one, settings, output, mine, is_sound=not problems))
    if problems or any(own):
        for mine, names in zip(own, taken, strict=True):
            mine.found[:0] = names.found
        tell_together(images, own, problems)
    elif output.several:
        _check_together(read, output, problems)
    problems.raise_if_any()
    loaded = settings.loaded().model
    whole = [_whole(sdata, section, loaded, version) for section in read]
    made = [output.several and _is_made(section, output) for section in whole]
    tell_together(images, [Problems("") if m else one for one, m in zip(taken, made, strict=True)], problems)
    problems.raise_if_any()
    left = [section for section, is_made in zip(whole, made, strict=True) if not is_made]
    return left, [section.key for section, is_made in zip(whole, made, strict=True) if is_made]


def _check_name(sdata: SpatialData, key: str | None, output: Output, problems: Problems) -> None:
    """Collect the reasons why a result cannot be written under its name."""
    if output.target is None or not output.is_valid or key is None:
        return
    if not problems.check({"key_added": key}, {"key_added": (ELEMENT, "superres")}):
        with problems.gathered(ValueError, OSError):
            check_output(sdata, key, overwrite=output.overwrite)
    if output.several:  # a free name that is suggested is one for all sections
        problems.found = [(kind, told.replace(f"'{key}_", f"'{output.key_added}_")) for kind, told in problems.found]


def _read(
    sdata: SpatialData, one: Asked, settings: Settings, output: Output, problems: Problems, *, is_sound: bool
) -> Section:
    """Read one section; all its problems are raised together. Unsound settings are not compared with it."""
    started, given = time.perf_counter(), dict(one.given)
    features, cells_key = given.pop("features"), given.pop("cells_key")
    if features is not None and not callable(features):
        if told := features_problem(features):
            problems.add(told, ValueError)
        else:
            features = np.asarray(features)  # of tensors and others the content cannot be compared when a run resumes
    if problems.check({"cells_key": cells_key}, {"cells_key": (optional(TEXT), None)}):
        cells_key = None
    obs = read_spots(sdata, one.image_key, **given, problems=problems)
    if not is_sound:
        return Section(one.image_key, "", obs, settings)
    assert obs.source is not None  # for types: read_spots names it
    key, settings = output.key_of(obs.source.shapes_key), replace(settings, features=features)
    assert key is not None  # for types: the spots are known
    if cells_key is not None and cells_key in kinds_of(key):
        problems.add(
            f"`cells_key={cells_key!r}` is a part of the result that `key_added={output.key_added!r}` replaces. Pass "
            f"another `key_added`, such as {f'{output.key_added}_cells'!r}.",
            ValueError,
        )
    elif cells_key is not None:
        settings = replace(settings, cells=cells_of(sdata, cells_key, obs, problems))
    settings.check_with(obs, problems)
    with problems.gathered(ValueError, OSError):
        sizes = {"n_bins": obs.grid.n_bins, "n_inside": int(obs.inside.sum())}
        check_size(output.target, len(obs.genes), **sizes, with_std=settings.with_std)
    problems.raise_if_any()
    seconds = {"read": time.perf_counter() - started}
    return Section(one.image_key, key, obs, settings, obsm_key=given.get("obsm_key"), seconds=seconds)


def _whole(sdata: SpatialData, section: Section, loaded: Any, version: str) -> Section:
    """The section with other genes for its components, loaded weights and its key."""
    settings = replace(section.settings, model=loaded, n_genes=len(section.obs.genes))
    obs = with_other_genes(sdata, section.obs.in_order(), section.obsm_key)
    image, source = sdata.images[section.image_key], obs.source
    assert source is not None  # for types: read_spots names it
    place = repr([source.coordinate_system, *((name, affine(image, name).tolist()) for name in sorted(systems(image)))])
    return replace(section, obs=obs, settings=settings, run_key=run_key(obs, settings, version), place=place)


def _check_together(read: Sequence[Section], output: Output, problems: Problems) -> None:
    """Collect problems of sections that may each be right: their genes, the names and the size of their results."""
    if len({section.obs.genes for section in read}) > 1:
        shared = [gene for gene in read[0].obs.genes if all(gene in section.obs.genes for section in read)]
        problems.add(f"`genes` needs the same genes for all sections. Pass `genes={shared!r}`.", ValueError)
    names = [name for section in read for name in kinds_of(section.key)]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        problems.add(f"`shapes_key` needs names that lead to different results, but {twice} occur twice. Rename one.")
    n_bins, n_inside = (
        sum(each) // len(read)
        for each in zip(*((one.obs.grid.n_bins, int(one.obs.inside.sum())) for one in read), strict=True)
    )
    with problems.gathered(ValueError, OSError):
        n_maps = sum(len(one.obs.genes) for one in read)
        check_size(output.target, n_maps, n_bins, n_inside, with_std=read[0].settings.with_std)


def _is_made(section: Section, output: Output) -> bool:
    """True if the same call has made a result; with ``overwrite``, only if it is as it was made."""
    sdata, names = output.target, OutputNames(section.key)
    table = None if sdata is None else sdata.tables.get(names.table)
    if sdata is None or table is None or dict(table.uns.get(PROVENANCE_KEY, {})).get(CALL) != section.call:
        return False
    if not output.overwrite:
        return True
    expected = [name for name in kinds_of(section.key) if name != names.std or section.settings.with_std]
    if not all(name in sdata for name in expected):
        return False
    result = Result(sdata, names.table, names.bins)
    if table.n_obs != np.count_nonzero(np.asarray(result.labels.data)):
        return False
    genes = list(section.obs.genes[: section.n_genes])
    return list(table.var_names) == genes and all(map(result.untouched, {genes[0], genes[-1]}))


def costs_of(sections: Sequence[Section], output: Output) -> tuple[list[Cost], Cost]:
    """Cost of each section, and of all of them one after the other."""
    each = [cost_of(one.obs, one.settings, backed=output.is_backed) for one in sections]
    stages = {name: sum(cost.stages[name] for cost in each) for name in each[0].stages}
    memory = max(cost.memory for cost in each)
    if not output.is_backed:  # each holds its own result; those of the others stay beside it
        sizes = [
            4 * one.n_genes * (one.obs.grid.n_bins + int(one.obs.inside.sum())) * (1 + one.settings.with_std)
            for one in sections
        ]
        memory += sum(sizes) - max(sizes)
    return each, Cost(stages, memory, sum(cost.disk for cost in each))


def register(sections: Sequence[Section], output: Output, progress: Progress, problems: Problems) -> list[Section]:
    """Register several sections before the first is computed, and raise the problems of all of them together.

    Raises
    ------
    ContractError
        If an image is rotated or flipped relative to its spots.
    """
    found, own = [], [Problems("") for _ in sections]
    for i, section in enumerate(sections):
        progress.at("align", i / len(sections), f"{section.key}: registering the image")
        found.append(_registered(section, output, own[i]))
    tell_together([section.image_key for section in sections], own, problems)
    problems.raise_if_any()
    return found


def _registered(section: Section, output: Output, problems: Problems) -> Section:
    """The section with its registration, unless an earlier run has kept what follows it."""
    kept, obs = Kept(), section.obs
    if output.is_backed:
        assert output.target is not None  # for types
        kept = Kept(scratch(output.target.path, section.key) / STAGES, section.run_key)
    if not section.settings.align or "distilled" in kept:
        return section
    started, he = time.perf_counter(), he_features(obs)
    known = (kept if "registration" in kept else Kept())("registration", lambda: registration(obs, he))
    if problem := turned(obs, known["turns"], Alignment.from_record(known["found"]), he):
        problems.add(problem)
    return replace(section, registered=known, seconds={**section.seconds, "align": time.perf_counter() - started})


class Registered(Kept):
    """Stages of a run that are kept on disk, and a registration that is done already.

    Parameters
    ----------
    kept
        Stages on disk.
    known
        The registration; ``None`` if it is not done.
    """

    def __init__(self, kept: Kept, known: Mapping[str, Any] | None) -> None:
        super().__init__(kept.folder, kept.key)
        self._known = known

    def __call__(self, stage: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """See :class:`~hadmst_sc.inference.kept.Kept`."""
        known = self._known if stage == "registration" else None
        return super().__call__(stage, make if known is None else lambda: dict(known))


class SectionProgress(Progress):
    """Stages of one of several sections, shown on the bar of all.

    Parameters
    ----------
    bar
        The bar of all sections; its plan has the seconds of each by its name.
    section
        The section.
    stages
        Expected seconds of its stages.
    """

    def __init__(self, bar: Progress, section: Section, stages: Mapping[str, float]) -> None:
        super().__init__(show=False)
        self._all, self._name = bar, section.key
        self._plan, self.seconds = dict(stages), dict(section.seconds)

    def _reckon(self, share: float) -> None:
        super()._reckon(share)
        since, done, left = self._event
        bar, plan = self._all, self._all._plan
        before = sum(plan[name] for name in takewhile(lambda name: name != self._name, plan))
        bar._plan = plan | {self._name: sum(self._plan.values())}
        bar._stage, bar._text, bar._event = "", f"{self._name}: {self._text}", (since, before + done, left)


@contextmanager
def messages_of(name: str) -> Iterator[None]:
    """Put the name of a section in front of messages of the logger; nothing if it is empty."""

    def prefix(record: LogRecord) -> bool:
        record.msg = f"{name}: {record.msg}"
        return True

    if name:
        logger.logger.addFilter(prefix)
    try:
        yield
    finally:
        logger.logger.removeFilter(prefix)
