"""The bank: training sections with the priors that inference would compute, made by worker processes, kept on disk.

There are two kinds. *Phantoms* have a true rate in every bin. *Real sections* do not: some of their spots (or half of
their molecules, if single cells were measured) are held out, the rest is distilled like a user's section, and the
network is trained to predict what was held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from hadmst_sc.distillation.genes import Distilled, distill
from hadmst_sc.models import HEStudent
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.errors import ContractError
from hadmst_sc.section.features import N_BASE, he_features
from hadmst_sc.section.measurement import Measurement
from hadmst_sc.section.observation import Observation
from hadmst_sc.train.config import BankConfig, TrainConfig, key_of

MIN_SPOTS = 24  # per real section; with fewer, the held-out spots are too few to learn from
MIN_PREVALENCE = 0.05  # share of the spots of a real section in which a gene must be detected to be trained on
MAX_GENES_FOR_COMPONENTS = 600  # genes per real section from which components are computed; more only cost time
MAPS = ("priors", "spots", "target")  # per gene
SHARED = ("coverage", "inside", "displacement", "owner", "weight")  # per section


@dataclass(frozen=True, eq=False)
class RealSection:
    """A real section for training.

    Parameters
    ----------
    obs
        The section with all spots.
    truth
        ``None``: spots are held out. Otherwise ``(genes, ny, nx)`` counts per bin of molecules that the spots have not
        seen, and all spots of ``obs`` are used.
    """

    obs: Observation
    truth: np.ndarray | None = None

    def __str__(self) -> str:
        made = "" if self.truth is None else " made of half of its molecules"
        return f"{len(self.obs.spots):,} spots{made}, {self.usable.sum():,} of {len(self.usable):,} genes usable"

    @property
    def digest(self) -> str:
        """Hash of everything that training reads from the section; a cached bank is only valid for the same data."""
        obs = self.obs
        found = hashlib.sha256(repr((obs.grid, obs.genes, self.truth is None)).encode())
        for array in (obs.he, obs.measurement.centres, obs.measurement.area, obs.counts, obs.inside, self.truth):
            if array is not None:
                found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()[:12]

    @property
    def usable(self) -> np.ndarray:
        """Genes that are detected in enough spots to be trained on, ``(genes,)`` bool."""
        return (self.obs.counts > 0).mean(0) >= MIN_PREVALENCE


def check_sections(sections: Mapping[str, RealSection], config: TrainConfig) -> None:
    """Check that every crop can be filled, before the bank is made.

    Raises
    ------
    ContractError
        Lists every section that has too few spots or genes, and a share of phantoms if there are no phantoms.
    """
    problems = []
    for name, section in sections.items():
        n_spots, n_genes = len(section.obs.spots), int(section.usable.sum())
        if n_spots < MIN_SPOTS:
            problems.append(f"{name}: at least {MIN_SPOTS} spots are needed, but it has {n_spots}. Remove the section.")
        if n_genes < config.genes:
            problems.append(
                f"{name}: `genes={config.genes}` per crop need to be detected in {MIN_PREVALENCE:.0%} of the spots, but"
                f" {n_genes} of {len(section.usable)} are. Set `genes = {max(n_genes, 1)}` at the top of the file."
            )
    if not config.bank.n_phantoms and (config.real_share < 1 or not sections):
        problems.append(
            f"`bank.n_phantoms` needs to be at least 1, because `real_share`={config.real_share:g} requires crops of "
            f"phantoms, but is 0. Set `n_phantoms = 24`."
        )
    if problems:
        raise ContractError("`config` requests crops that cannot be drawn", problems)


def _distilled(obs: Observation, student: HEStudent) -> Distilled:
    maps = he_features(obs)
    return distill(obs, he=maps, features=student.read(maps[:N_BASE], obs.grid.bin_um), second_look=False)


def _common(distilled: Distilled, genes: np.ndarray, obs: Observation) -> dict[str, np.ndarray]:
    half = np.float16
    return {
        "priors": distilled.priors(genes).astype(half),
        "spots": distilled.spot_maps(genes).astype(half),
        "context": distilled.section.context.astype(half),
        "token": distilled.token[genes],
        "gene_mean": distilled.gene_mean[genes].astype(np.float32),
        "coverage": obs.measurement.coverage.clip(0, 1).astype(half),
        "inside": obs.inside.astype(np.uint8),
    }


def _store(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    scratch = path.with_suffix(".part")
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, scratch)
    scratch.rename(path)  # so a file with its final name is always complete
    return path


# With other numbers of threads BLAS sums in another order, and there are as many workers as cores.
_one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")


@_one_blas_thread
def make_phantom(path: Path, seed: int, config: BankConfig, student: HEStudent) -> Path:
    """Simulate phantom ``seed``, distil it and store what training reads, in half precision."""
    rng = np.random.default_rng([config.first_seed, seed])
    share = np.array([kind.share for kind in config.kinds])
    kind = config.kinds[rng.choice(len(share), p=share / share.sum())]
    phantom = simulate(seed, n_genes=config.n_genes, **kind.geometry())
    obs = phantom.observation
    distilled = _distilled(obs, student)
    nowhere = np.full(obs.grid.shape, -1, np.int32)
    displacement = np.array(phantom.misregistration_um)[:, None, None] / obs.grid.bin_um
    return _store(
        path,
        _common(distilled, np.arange(len(obs.genes)), obs)
        | {
            "target": (phantom.rate / distilled.gene_mean[:, None, None]).clip(0, 6e4).astype(np.float16),
            "displacement": np.broadcast_to(displacement, (2, *obs.grid.shape)).astype(np.float16),
            "owner": nowhere,
            "weight": np.zeros(nowhere.shape, np.float16),
            "hidden": np.zeros((len(obs.genes), 1), np.float32),
            "hidden_area": np.ones(1, np.float32),
        },
    )


@_one_blas_thread
def make_masked(path: Path, seed: int, section: RealSection, config: BankConfig, student: HEStudent) -> Path:
    """Hold out spots of a real section, distil the others, and store a window in the format of :func:`make_phantom`."""
    rng = np.random.default_rng([config.first_seed, seed, 1])
    obs = _fewer_genes(section.obs, rng)
    if section.truth is None:
        hide = rng.random(len(obs.spots)) < rng.uniform(*config.hidden_share)
        if not hide.any():  # possible if there are few spots
            hide[rng.integers(len(hide))] = True
        hidden, counts = obs.measurement.subset(hide), obs.counts[hide].T
        given = obs.subset_spots(~hide)
    else:
        given, chosen = obs, [section.obs.genes.index(gene) for gene in obs.genes]
        hidden, counts = None, section.truth[chosen].reshape(len(chosen), -1)
    distilled = _distilled(given, student)
    genes = rng.permutation(len(obs.genes))[: config.n_genes]
    arrays = _common(distilled, genes, given)
    owner, weight = _footprints(hidden, obs.inside)
    arrays |= {
        "target": np.zeros_like(arrays["spots"]),
        "displacement": np.zeros((2, *obs.grid.shape), np.float16),
        "owner": owner,
        "weight": weight.astype(np.float16),
    }
    window = _window(owner >= 0, config.window, rng)
    arrays = {k: a[(..., *window)] if k in (*MAPS, *SHARED, "context") else a for k, a in arrays.items()}
    present, renamed = np.unique(arrays["owner"], return_inverse=True)
    present, first = present[present >= 0], int((present < 0).any())
    arrays["owner"] = renamed.reshape(arrays["owner"].shape).astype(np.int32) - first
    arrays["hidden"] = counts[genes][:, present].astype(np.float32)
    area = np.ones(len(present)) if hidden is None else hidden.area[present]
    arrays["hidden_area"] = area.astype(np.float32)
    return _store(path, arrays)


def _fewer_genes(obs: Observation, rng: np.random.Generator) -> Observation:
    seen = np.flatnonzero(RealSection(obs).usable)
    kept = np.sort(rng.permutation(seen)[:MAX_GENES_FOR_COMPONENTS])
    return replace(obs, counts=obs.counts[:, kept], genes=tuple(obs.genes[i] for i in kept))


def _footprints(hidden: Measurement | None, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Held-out observation of each bin (-1: none) and share of the bin in it; each bin is one if ``hidden`` is None."""
    if hidden is None:
        owner = np.where(inside, np.arange(inside.size).reshape(inside.shape), -1)
        return owner.astype(np.int32), (owner >= 0).astype(np.float32)
    matrix = hidden.matrix.tocsc()
    owner, weight = np.full(inside.size, -1, np.int32), np.zeros(inside.size, np.float32)
    for column in np.flatnonzero(np.diff(matrix.indptr)):
        rows = slice(matrix.indptr[column], matrix.indptr[column + 1])
        best = int(np.argmax(matrix.data[rows]))  # a bin shared by spots that touch goes to the larger part
        owner[column], weight[column] = matrix.indices[rows][best], matrix.data[rows][best]
    return owner.reshape(inside.shape), weight.reshape(inside.shape)


def _window(wanted: np.ndarray, size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """Window of at most ``size`` × ``size`` bins around a random bin of ``wanted``."""
    centre = np.argwhere(wanted)[rng.integers(wanted.sum())]
    starts = [int(np.clip(c - size // 2, 0, max(side - size, 0))) for c, side in zip(centre, wanted.shape, strict=True)]
    return slice(starts[0], starts[0] + size), slice(starts[1], starts[1] + size)


class Bank:
    """Sections on disk, made by worker processes in a fixed order; reading waits for sections that are not ready.

    Parameters
    ----------
    directory
        Folder of the files ``phantom_<seed>_<key>`` and ``<section>_<number>_<key>``. The key depends on all that a
        file is made from, student and data included, so what was made for another run is used only if it is the same.
    config
        Configuration of the bank.
    student
        The trained student.
    sections
        Real sections by name.
    """

    def __init__(
        self,
        directory: Path,
        config: BankConfig,
        student: HEStudent,
        sections: Mapping[str, RealSection] | None = None,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.config, sections = config, sections or {}
        makers: dict[Path, tuple[Callable[..., Path], tuple[Any, ...]]] = {}
        made_from = config.first_seed, config.n_genes, _weights(student)
        key = key_of(config.kinds, *made_from)
        for seed in range(config.first_seed, config.first_seed + config.n_phantoms):
            path = directory / f"phantom_{seed:06d}_{key}.safetensors"
            makers[path] = (make_phantom, (path, seed, config, student))
        self.n_real = config.n_masked * len(sections)
        keys = {
            name: key_of(section.digest, config.hidden_share, config.window, *made_from)
            for name, section in sections.items()
        }
        for number in range(config.n_masked):
            for name, section in sections.items():
                path = directory / f"{name}_{number:03d}_{keys[name]}.safetensors"
                makers[path] = (make_masked, (path, number, section, config, student))
        self._paths = list(makers)
        missing = [path for path in self._paths if not path.exists()]
        # Spawn, because forking a process with running BLAS and torch threads can hang.
        self._pool = ProcessPoolExecutor(config.n_workers, get_context("spawn"), _one_thread) if missing else None
        self._jobs: dict[Path, Future[Path]] = {}
        if self._pool is not None:
            for path in missing:
                make, arguments = makers[path]
                self._jobs[path] = self._pool.submit(make, *arguments)

    def available(self, step: int) -> int:
        """Number of phantoms that a step may use: a function of the step alone."""
        more = step // max(1, self.config.steps_per_phantom)
        return min(self.config.n_phantoms, self.config.start_with + more)

    def phantom(self, index: int) -> StoredSection:
        """Phantom ``index``."""
        return self._stored(self._paths[index])

    def real(self, index: int) -> StoredSection:
        """Masked section ``index`` of ``n_real``."""
        return self._stored(self._paths[self.config.n_phantoms + index])

    def _stored(self, path: Path) -> StoredSection:
        if path in self._jobs:
            self._jobs.pop(path).result()
        return StoredSection(path)

    def close(self) -> None:
        """Stop the workers; unfinished sections are dropped and made again next time."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _weights(student: HEStudent) -> str:
    found = hashlib.sha256()
    for name, value in sorted(student.state_dict().items()):
        found.update(name.encode() + value.cpu().numpy().tobytes())
    return found.hexdigest()


def _one_thread() -> None:
    """Limit torch to one thread, because there are as many workers as cores."""
    torch.set_num_threads(1)


class StoredSection:
    """A section of the bank, read lazily: the bank is kept in the page cache, not in the memory of the process."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "np")

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def genes(self, name: str, genes: np.ndarray) -> np.ndarray:
        """Rows of an array whose first axis is genes."""
        part = self._file.get_slice(name)
        return np.stack([part[int(g)] for g in genes])
