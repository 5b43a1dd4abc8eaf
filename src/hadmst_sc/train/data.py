"""Training data: a bank of phantoms with the priors that inference would compute, and random crops of it."""

from __future__ import annotations

from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from hadmst_sc.datasets.simulate import simulate
from hadmst_sc.distill import N_METAGENES, PRIORS, TOKEN, distill
from hadmst_sc.train.config import BankConfig, TrainConfig


def make_section(path: Path, seed: int, config: BankConfig) -> Path:
    """Draw phantom ``seed``, distil it and store what training reads, in half precision."""
    rng = np.random.default_rng([config.first_seed, seed])
    share = np.array([kind.share for kind in config.kinds])
    kind = config.kinds[rng.choice(len(share), p=share / share.sum())]
    phantom = simulate(
        seed,
        size_um=kind.size_um,
        bin_um=kind.bin_um,
        spot_um=kind.spot_um,
        pitch_um=kind.pitch_um,
        n_genes=config.n_genes,
    )
    obs = phantom.observation
    distilled = distill(obs)
    genes = np.arange(len(obs.genes))
    half = np.float16
    arrays = {
        "priors": distilled.priors(genes).astype(half),
        "spots": distilled.spot_maps(genes).astype(half),
        "context": distilled.context.astype(half),
        "target": (phantom.rate / distilled.gene_mean[:, None, None]).clip(0, 6e4).astype(half),
        "token": distilled.token.astype(np.float32),
        "coverage": obs.measurement.coverage.clip(0, 1).astype(half),
        "inside": obs.inside.astype(np.uint8),
    }
    scratch = path.with_suffix(".part")
    save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, scratch)
    scratch.rename(path)  # a file under its final name is whole
    return path


class Bank:
    """Phantoms on disk, made by worker processes in the order of their seeds; one that is not ready is waited for."""

    def __init__(self, directory: Path, config: BankConfig) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.config = config
        self._paths = [directory / f"{config.first_seed + i:06d}.safetensors" for i in range(config.n_phantoms)]
        self._loaded: list[dict[str, np.ndarray]] = []
        missing = [i for i, path in enumerate(self._paths) if not path.exists()]
        # Spawned, because forking a process whose BLAS and torch threads run can hang.
        self._pool = ProcessPoolExecutor(config.n_workers, get_context("spawn")) if missing else None
        self._jobs: dict[int, Future[Path]] = {}
        if self._pool is not None:
            for i in missing:
                self._jobs[i] = self._pool.submit(make_section, self._paths[i], config.first_seed + i, config)

    def available(self, step: int) -> int:
        """How many phantoms a step may use: a function of the step alone."""
        more = step // max(1, self.config.steps_per_phantom)
        return min(self.config.n_phantoms, self.config.start_with + more)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        while len(self._loaded) <= index:
            position = len(self._loaded)
            if position in self._jobs:
                self._jobs.pop(position).result()
            self._loaded.append(load_file(self._paths[position]))
        return self._loaded[index]

    def close(self) -> None:
        """Stop the workers; phantoms under way are dropped and made again next time."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class Batch:
    """Crops of ``b`` genes from ``s`` sections, float32."""

    context: Tensor  # (s, c, n, n)
    section: Tensor  # (b,) index into context
    priors: Tensor  # (b, 5, n, n)
    spots: Tensor  # (b, n, n)
    coverage: Tensor  # (b, n, n)
    token: Tensor  # (b, t)
    target: Tensor  # (b, n, n) rates in gene means
    inside: Tensor  # (b, n, n) 0 or 1

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def reordered(self, order: Tensor) -> Batch:
        """The same items in another order."""
        items = {f.name: getattr(self, f.name)[order] for f in fields(self) if f.name != "context"}
        return replace(self, **items)


def without_he(crop: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the priors and the token would be without an image."""
    priors, token = crop["priors"].copy(), crop["token"].copy()
    for index, name in enumerate(PRIORS):
        priors[:, index] = 1.0 if name in ("he", "texture") else crop["priors"][:, PRIORS.index("space")]
    token[:, TOKEN.index("r2_joint")] = token[:, TOKEN.index("r2_space")]
    token[:, TOKEN.index("r2_he")] = 0.0
    return crop | {"priors": priors, "token": token, "context": np.zeros_like(crop["context"])}


def _crop(
    section: dict[str, np.ndarray], genes: np.ndarray, size: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    ny, nx = section["coverage"].shape
    inside = np.argwhere(section["inside"])
    # Around a bin in tissue: crops of background teach nothing.
    y, x = inside[rng.integers(len(inside))] - rng.integers(0, size, 2)
    y, x = int(np.clip(y, 0, ny - size)), int(np.clip(x, 0, nx - size))
    window = (slice(y, y + size), slice(x, x + size))
    turn, flip = int(rng.integers(4)), bool(rng.integers(2))
    # Principal components have no sign of their own: do not let the network rely on the convention that gives them one.
    signs = rng.choice([-1.0, 1.0], N_METAGENES).astype(np.float32)

    def cut(maps: np.ndarray) -> np.ndarray:
        maps = np.rot90(maps[(..., *window)].astype(np.float32), turn, (-2, -1))
        return np.ascontiguousarray(maps[..., ::-1] if flip else maps)

    out = {name: cut(section[name][genes]) for name in ("priors", "spots", "target")}
    out |= {name: np.broadcast_to(cut(section[name]), out["spots"].shape) for name in ("coverage", "inside")}
    context = cut(section["context"])
    context[:N_METAGENES] *= signs[:, None, None]
    return out | {"context": context[None], "token": section["token"][genes]}


def draw_batch(bank: Bank, config: TrainConfig, step: int, seed: int) -> Batch:
    """The batch of a step: a function of (seed, step) alone, which is what makes resuming exact."""
    rng = np.random.default_rng([seed, step])
    parts = []
    for index in rng.integers(0, bank.available(step), config.sections):
        section = bank[int(index)]
        chosen = rng.choice(len(section["token"]), config.genes, replace=False)
        part = _crop(section, chosen, config.crop, rng)
        parts.append(without_he(part) if rng.random() < config.drop_he else part)
    stacked = {name: torch.from_numpy(np.concatenate([p[name] for p in parts])) for name in parts[0]}
    batch = Batch(section=torch.arange(config.sections).repeat_interleave(config.genes), **stacked)
    # The first items train the mean and the others the denoiser: every section takes part in both.
    order = np.random.default_rng([seed, step, 1]).permutation(len(batch.section))
    return batch.reordered(torch.from_numpy(order))
