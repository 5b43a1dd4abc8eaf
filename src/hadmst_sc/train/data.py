"""Training data: a bank of sections with the priors that inference would compute, and random crops of it.

Two streams. *Phantoms* have a true rate in every bin. *Real sections* have none: some of their spots (or half of their
molecules, where single cells were measured) are hidden, the rest is distilled as a user's section would be, and what
was hidden is what the network must foretell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.numpy import save_file
from torch import Tensor

from hadmst_sc.contract import Observation
from hadmst_sc.datasets.simulate import simulate
from hadmst_sc.distill import CONTEXT, N_METAGENES, PRIORS, TOKEN, Distilled, distill
from hadmst_sc.features import N_BASE, he_features
from hadmst_sc.measurement import Measurement
from hadmst_sc.models import HEStudent
from hadmst_sc.train.config import BankConfig, TrainConfig

MIN_PREVALENCE = 0.05  # of the spots, for a gene of a real section to be trained on
MAX_METAGENE_GENES = 600  # of a real section; more only cost time
MAPS = ("priors", "spots", "target")  # per gene
SHARED = ("coverage", "inside", "displacement", "owner", "weight")  # per section


@dataclass(frozen=True, eq=False)
class RealSection:
    """A section to be trained on.

    Parameters
    ----------
    obs
        All of its spots.
    truth
        ``None``: spots are hidden. Else ``(genes, ny, nx)`` counts per bin of molecules that the spots have not seen,
        and ``obs`` is used whole.
    """

    obs: Observation
    truth: np.ndarray | None = None


def _distilled(obs: Observation, student: HEStudent) -> Distilled:
    maps = he_features(obs)
    return distill(obs, he=maps, features=student.read(maps[:N_BASE], obs.grid.bin_um))


def _common(distilled: Distilled, genes: np.ndarray, obs: Observation) -> dict[str, np.ndarray]:
    half = np.float16
    return {
        "priors": distilled.priors(genes).astype(half),
        "spots": distilled.spot_maps(genes).astype(half),
        "context": distilled.context.astype(half),
        "token": distilled.token[genes],
        "gene_mean": distilled.gene_mean[genes].astype(np.float32),
        "coverage": obs.measurement.coverage.clip(0, 1).astype(half),
        "inside": obs.inside.astype(np.uint8),
    }


def _store(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    scratch = path.with_suffix(".part")
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, scratch)
    scratch.rename(path)  # a file under its final name is whole
    return path


def make_phantom(path: Path, seed: int, config: BankConfig, student: HEStudent) -> Path:
    """Draw phantom ``seed``, distil it and store what training reads, in half precision."""
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


def make_masked(path: Path, seed: int, section: RealSection, config: BankConfig, student: HEStudent) -> Path:
    """Hide spots of a real section, distil the others, and store a window of it as :func:`make_phantom` does."""
    rng = np.random.default_rng([config.first_seed, seed, 1])
    obs = _fewer_genes(section.obs, rng)
    if section.truth is None:
        hide = rng.random(len(obs.spots)) < rng.uniform(*config.hidden_share)
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
    seen = np.flatnonzero((obs.counts > 0).mean(0) >= MIN_PREVALENCE)
    kept = np.sort(rng.permutation(seen)[:MAX_METAGENE_GENES])
    return replace(obs, counts=obs.counts[:, kept], genes=tuple(obs.genes[i] for i in kept))


def _footprints(hidden: Measurement | None, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which hidden observation each bin belongs to (-1: none) and by which share; bins themselves where all are."""
    if hidden is None:
        owner = np.where(inside, np.arange(inside.size).reshape(inside.shape), -1)
        return owner.astype(np.int32), (owner >= 0).astype(np.float32)
    matrix = hidden.matrix.tocsc()
    owner, weight = np.full(inside.size, -1, np.int32), np.zeros(inside.size, np.float32)
    for column in np.flatnonzero(np.diff(matrix.indptr)):
        rows = slice(matrix.indptr[column], matrix.indptr[column + 1])
        best = int(np.argmax(matrix.data[rows]))  # spots that touch share a bin now and then: the larger part has it
        owner[column], weight[column] = matrix.indices[rows][best], matrix.data[rows][best]
    return owner.reshape(inside.shape), weight.reshape(inside.shape)


def _window(wanted: np.ndarray, size: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """A window of at most ``size`` bins a side around a random wanted bin."""
    centre = np.argwhere(wanted)[rng.integers(wanted.sum())]
    starts = [int(np.clip(c - size // 2, 0, max(side - size, 0))) for c, side in zip(centre, wanted.shape, strict=True)]
    return slice(starts[0], starts[0] + size), slice(starts[1], starts[1] + size)


class Bank:
    """Sections on disk, made by worker processes in a fixed order; one that is not ready is waited for.

    Parameters
    ----------
    directory
        Where they lie, ``phantom_<seed>`` and ``<section>_<number>``.
    config
        What they are.
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
        for seed in range(config.first_seed, config.first_seed + config.n_phantoms):
            path = directory / f"phantom_{seed:06d}.safetensors"
            makers[path] = (make_phantom, (path, seed, config, student))
        self.n_real = config.n_masked * len(sections)
        for number in range(config.n_masked):
            for name, section in sections.items():
                path = directory / f"{name}_{number:03d}.safetensors"
                makers[path] = (make_masked, (path, number, section, config, student))
        self._paths = list(makers)
        missing = [path for path in self._paths if not path.exists()]
        # Spawned, because forking a process whose BLAS and torch threads run can hang.
        self._pool = ProcessPoolExecutor(config.n_workers, get_context("spawn"), _one_thread) if missing else None
        self._jobs: dict[Path, Future[Path]] = {}
        if self._pool is not None:
            for path in missing:
                make, arguments = makers[path]
                self._jobs[path] = self._pool.submit(make, *arguments)

    def available(self, step: int) -> int:
        """How many phantoms a step may use: a function of the step alone."""
        more = step // max(1, self.config.steps_per_phantom)
        return min(self.config.n_phantoms, self.config.start_with + more)

    def phantom(self, index: int) -> StoredSection:
        """Phantom ``index``."""
        return self._stored(self._paths[index])

    def real(self, index: int) -> StoredSection:
        """Masked section ``index`` of ``n_real``."""
        return self._stored(self._paths[self.config.n_phantoms + index])

    def finish(self) -> None:
        """Wait for every section."""
        for path in self._paths:
            self._stored(path)

    def _stored(self, path: Path) -> StoredSection:
        if path in self._jobs:
            self._jobs.pop(path).result()
        return StoredSection(path)

    def close(self) -> None:
        """Stop the workers; sections under way are dropped and made again next time."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def _one_thread() -> None:
    """Workers are as many as there are cores."""
    torch.set_num_threads(1)


class StoredSection:
    """A section of the bank, read as far as it is asked for: the page cache, not the process, holds the bank."""

    def __init__(self, path: Path) -> None:
        self._file = safe_open(path, "np")

    def __getitem__(self, name: str) -> np.ndarray:
        return self._file.get_tensor(name)

    def genes(self, name: str, genes: np.ndarray) -> np.ndarray:
        """Rows of an array whose first axis are genes."""
        part = self._file.get_slice(name)
        return np.stack([part[int(g)] for g in genes])


@dataclass(frozen=True)
class Batch:
    """Crops of ``b`` genes from ``s`` sections, float32; items of real sections come first."""

    context: Tensor  # (s, c, n, n)
    section: Tensor  # (b,) index into context
    priors: Tensor  # (b, 5, n, n)
    spots: Tensor  # (b, n, n)
    coverage: Tensor  # (b, n, n)
    token: Tensor  # (b, t)
    target: Tensor  # (b, n, n) rates in gene means; zero in real sections
    inside: Tensor  # (b, n, n) 0 or 1
    displacement: Tensor  # (s, 2, n, n) bins: where the image shows what the spots saw; phantoms only
    known: Tensor  # (s,) 1 for phantoms, whose displacement is known, with an image; else 0
    owner: Tensor  # (r, n, n) int64, row of `counts`; its last row collects what is not hidden
    weight: Tensor  # (r, n, n) share of the bin in its hidden spot
    counts: Tensor  # (hidden + 1,) counts of hidden spots of the r real items
    depth: Tensor  # (hidden + 1,) counts per unit of pooled rate
    item: Tensor  # (hidden + 1,) which of the r items

    @property
    def n_real(self) -> int:
        """Items of real sections."""
        return len(self.owner)

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def without_he(crop: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the priors, the token and the context would be without an image."""
    priors, token, context = crop["priors"].copy(), crop["token"].copy(), crop["context"].copy()
    for index, name in enumerate(PRIORS):
        priors[:, index] = 1.0 if name in ("he", "texture") else crop["priors"][:, PRIORS.index("space")]
    token[:, TOKEN.index("r2_joint")] = token[:, TOKEN.index("r2_space")]
    token[:, TOKEN.index("r2_he")] = 0.0
    context[:, CONTEXT.from_image] = 0.0
    context[:, CONTEXT.of("joint")] = context[:, CONTEXT.of("space")]
    known = np.zeros_like(crop["known"])
    return crop | {"priors": priors, "token": token, "context": context, "known": known}


def _crop(section: StoredSection, genes: np.ndarray, size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    inside_map = section["inside"]
    ny, nx = inside_map.shape
    inside = np.argwhere(inside_map)
    # Around a bin in tissue: crops of background teach nothing.
    y, x = inside[rng.integers(len(inside))] - rng.integers(0, size, 2)
    y, x = int(np.clip(y, 0, max(ny - size, 0))), int(np.clip(x, 0, max(nx - size, 0)))
    window = (slice(y, y + size), slice(x, x + size))
    turn, flip = int(rng.integers(4)), bool(rng.integers(2))
    # Principal components have no sign of their own: do not let the network rely on the convention that gives them one.
    signs = np.tile(rng.choice([-1.0, 1.0], N_METAGENES), len(CONTEXT.sources)).astype(np.float32)

    def cut(name: str, maps: np.ndarray) -> np.ndarray:
        fill = {"priors": 1.0, "owner": -1}.get(name, 0.0)
        maps = maps[(..., *window)].astype(np.int64 if name == "owner" else np.float32)
        missing = [(0, size - side) for side in maps.shape[-2:]]
        if any(after for _, after in missing):
            maps = np.pad(maps, [(0, 0)] * (maps.ndim - 2) + missing, constant_values=fill)
        maps = np.rot90(maps, turn, (-2, -1))
        return np.ascontiguousarray(maps[..., ::-1] if flip else maps)

    out = {name: cut(name, section.genes(name, genes)) for name in MAPS}
    out |= {name: cut(name, section[name]) for name in (*SHARED, "context")}
    out["context"][: CONTEXT.n_metagenes] *= signs[:, None, None]
    out["displacement"] = _turned(out["displacement"], turn, flip)
    out |= {name: section.genes(name, genes) for name in ("token", "hidden", "gene_mean")}
    return out | {"hidden_area": section["hidden_area"]}


def _turned(vectors: np.ndarray, turn: int, flip: bool) -> np.ndarray:
    """Vectors (y, x) whose map was turned by ``np.rot90`` and perhaps mirrored."""
    y, x = vectors
    for _ in range(turn):
        y, x = -x, y
    return np.stack([y, -x if flip else x])


def _hidden(crop: dict[str, np.ndarray], first_item: int) -> dict[str, np.ndarray]:
    """Hidden spots that lie wholly in the crop, one row per gene and spot; the owner's row numbers start at zero."""
    owner, weight = crop["owner"], crop["weight"]
    n_genes, n = crop["hidden"].shape
    pooled = np.bincount(owner[owner >= 0], weight[owner >= 0], n)
    whole = np.flatnonzero(pooled > 0.98 * crop["hidden_area"]) if n else np.zeros(0, int)
    rename = np.full(n + 1, -1)
    rename[whole] = np.arange(len(whole))
    own = rename[owner]  # -1 stays -1: the last entry
    rows = np.where(own >= 0, own + len(whole) * np.arange(n_genes)[:, None, None], -1)
    depth = crop["gene_mean"][:, None] * np.broadcast_to(pooled[whole], (n_genes, len(whole)))
    return {
        "owner": rows,
        "weight": np.broadcast_to(weight, rows.shape),
        "counts": crop["hidden"][:, whole].ravel(),
        "depth": depth.ravel().astype(np.float32),
        "item": np.repeat(np.arange(n_genes), len(whole)) + first_item,
    }


def draw_batch(bank: Bank, config: TrainConfig, step: int, seed: int) -> Batch:
    """The batch of a step: a function of (seed, step) alone, which is what makes resuming exact."""
    rng = np.random.default_rng([seed, step])
    parts, hidden = [], []
    n_real = int((rng.random(config.sections) < config.real_share).sum()) if bank.n_real else 0
    for number in range(config.sections):
        real = number < n_real
        index = int(rng.integers(bank.n_real if real else bank.available(step)))
        section = bank.real(index) if real else bank.phantom(index)
        chosen = rng.choice(len(section["token"]), config.genes, replace=False)
        part = _crop(section, chosen, config.crop, rng) | {"known": np.full(1, float(not real), np.float32)}
        if real:
            hidden.append(_hidden(part, number * config.genes))
        part["context"] = part["context"][None]  # one of the section, the rest one per gene
        part = without_he(part) if rng.random() < config.drop_he else part
        parts.append(part | {"context": part["context"][0]})
    return _stacked(parts, hidden, config, np.random.default_rng([seed, step, 1]))


def _stacked(
    parts: list[dict[str, np.ndarray]], hidden: list[dict[str, np.ndarray]], config: TrainConfig, rng: Any
) -> Batch:
    def joined(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([part[name] for part in parts]))

    def each(name: str) -> Tensor:
        return torch.from_numpy(np.stack([part[name] for part in parts]))

    def of_hidden(name: str, last: float) -> Tensor:
        values = [np.asarray(h[name]) for h in hidden] + [np.array([last])]
        return torch.from_numpy(np.concatenate(values).astype(np.int64 if name == "item" else np.float32))

    n_items, n_real = len(parts) * config.genes, len(hidden) * config.genes
    # Phantoms are shuffled: the first of them train the mean and the others the denoiser, from every section.
    order = torch.from_numpy(np.concatenate([np.arange(n_real), n_real + rng.permutation(n_items - n_real)]))
    section = torch.arange(len(parts)).repeat_interleave(config.genes)[order]
    per_item = {name: joined(name)[order] for name in (*MAPS, "token")}
    per_item |= {name: each(name)[section] for name in ("coverage", "inside")}
    total = sum(len(h["counts"]) for h in hidden)
    owners, start = [torch.zeros(0, config.crop, config.crop, dtype=torch.int64)], 0
    for h in hidden:
        owners.append(torch.from_numpy(np.where(h["owner"] >= 0, h["owner"] + start, total)))
        start += len(h["counts"])
    weights = [torch.zeros(0, config.crop, config.crop), *(torch.from_numpy(np.array(h["weight"])) for h in hidden)]
    return Batch(
        context=each("context"),
        section=section,
        displacement=each("displacement"),
        known=joined("known"),
        owner=torch.cat(owners),
        weight=torch.cat(weights),
        counts=of_hidden("counts", 0.0),
        depth=of_hidden("depth", 1.0),
        item=of_hidden("item", 0),
        **per_item,
    )
