"""Batches: random crops of random genes from the sections of the bank."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hadmst_sc.distillation.components import CONTEXT, N_LEADING
from hadmst_sc.distillation.genes import PRIORS, TOKEN
from hadmst_sc.train.bank import MAPS, SHARED, Bank, StoredSection
from hadmst_sc.train.config import TrainConfig


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
    known: Tensor  # (s,) 1 for phantoms with an image, whose displacement is known; else 0
    owner: Tensor  # (r, n, n) int64, row of `counts`; the last row collects bins that are not held out
    weight: Tensor  # (r, n, n) share of the bin in its held-out spot
    counts: Tensor  # (held out + 1,) counts of held-out spots of the r real items
    depth: Tensor  # (held out + 1,) counts per unit of pooled rate
    item: Tensor  # (held out + 1,) index of the item, 0 to r - 1

    @property
    def n_real(self) -> int:
        """Number of items of real sections."""
        return len(self.owner)

    @property
    def drawn(self) -> Tensor:
        """Items of one phantom, for losses across genes; empty if all sections are real."""
        item = torch.arange(len(self.section), device=self.section.device)
        return ((self.section == len(self.context) - 1) & (item >= self.n_real)).nonzero()[:, 0]

    def to(self, device: torch.device) -> Batch:
        """Copy of the batch on a device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})


def without_he(crop: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Replace priors, token and context by those of a section without an image."""
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
    # Around a bin in tissue, because crops of background teach nothing.
    y, x = inside[rng.integers(len(inside))] - rng.integers(0, size, 2)
    y, x = int(np.clip(y, 0, max(ny - size, 0))), int(np.clip(x, 0, max(nx - size, 0)))
    window = (slice(y, y + size), slice(x, x + size))
    turn, flip = int(rng.integers(4)), bool(rng.integers(2))
    # Signs of principal components are arbitrary: keep the network from relying on the convention that fixes them.
    signs = np.tile(rng.choice([-1.0, 1.0], N_LEADING), len(CONTEXT.sources)).astype(np.float32)

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
    out["context"][: CONTEXT.n_leading] *= signs[:, None, None]
    out["displacement"] = turned(out["displacement"], turn, flip)
    out |= {name: section.genes(name, genes) for name in ("token", "hidden", "gene_mean")}
    return out | {"hidden_area": section["hidden_area"]}


def turned(vectors: np.ndarray, turn: int, flip: bool) -> np.ndarray:
    """Turn vectors (y, x) along with their map, which was rotated by ``np.rot90`` and perhaps mirrored."""
    y, x = vectors
    for _ in range(turn):
        y, x = -x, y
    return np.stack([y, -x if flip else x])


def _hidden(crop: dict[str, np.ndarray], first_item: int) -> dict[str, np.ndarray]:
    """Held-out spots that are entirely in the crop, one row per gene and spot; row numbers of owners start at zero."""
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
    """Draw the batch of a step: a function of (seed, step) alone, so that resuming is exact."""
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
        part["context"] = part["context"][None]  # one per section; all else is one per gene
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
    # Shuffle phantom items: the first ones train the mean and the others the denoiser, with every section in both.
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
