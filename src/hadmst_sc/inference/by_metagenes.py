"""Many genes by way of few: the network sees metagenes and some genes, and tells from these what it would do to others.

Two things are known of a gene that the network does not see: its mixture of the metagenes' maps, and what the network
did to genes like it, whose counts are as deep, as predictable and in the same places. The closed form moves towards
both. Draws lack a mixture's own part of a gene; their spread is therefore that of genes alike, in model space, where
errors of all genes have one size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from hadmst_sc.diffusion.denoiser import Residual, closed_form
from hadmst_sc.distillation.components import Panel
from hadmst_sc.distillation.genes import Distilled, decoder
from hadmst_sc.distillation.metagenes import metagenes
from hadmst_sc.inference.chunk import slope
from hadmst_sc.inference.shared import Mixture, SharedSection, joined
from hadmst_sc.inference.workers import work
from hadmst_sc.trust.gate import spaced

N_LANDMARKS = 48  # genes that the network sees for all
LIKE = 1.5  # standard deviations of the token within which genes are alike
PLACES = 3.0  # log-weight of genes in the same places
TINY = 1e-9  # counts


def mixed(section: SharedSection, *, without: np.ndarray | None = None, client: Any = None) -> SharedSection:
    """The section with metagenes and some landmark genes, none of those ``without``, in place of the network."""
    distilled, settings = section.distilled, section.settings
    n, gene_chunk = settings.n_metagenes, settings.batch_size
    assert n is not None  # for types: asked for
    found = metagenes(distilled.panel, n)
    alone = replace(settings, n_samples=0, consistency="off")  # genes have their own
    seen = replace(section, share=1.0, settings=alone)
    panel = Panel(found.counts, distilled.measurement)
    few = replace(seen, distilled=decoder(distilled.section, panel), genes=tuple(f"metagene {k}" for k in range(n)))
    maps = _maps(few, np.arange(n), gene_chunk, client)[0]
    genes = landmarks(distilled.panel, without)
    network, closed = (_maps(one, genes, gene_chunk, client)[0] for one in (seen, replace(seen, model=None)))
    change = np.log(np.maximum(network, TINY) / np.maximum(closed, TINY))
    spread = None
    if settings.n_samples > 1:
        spread = _spread(section, genes, *_maps(section, genes, gene_chunk, client))
    mixture = Mixture(maps, found.shares, change, spread, likeness(distilled, genes))
    return replace(section, model=None, encoded=None, mixture=mixture)


def landmarks(panel: Panel, without: np.ndarray | None = None) -> np.ndarray:
    """Genes (index) evenly spaced from the most to the least abundant; all of them where none would be left."""
    ranked = np.argsort(-panel.mean, kind="stable")
    others = ranked if without is None else ranked[~np.isin(ranked, without)]
    return spaced(others if len(others) else ranked, N_LANDMARKS)


def _maps(
    section: SharedSection, genes: np.ndarray, gene_chunk: int, client: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """Mean and standard deviation of some genes, ``(len(genes), ny, nx)``."""
    chunks = [genes[i : i + gene_chunk] for i in range(0, len(genes), gene_chunk)]
    found = {int(chunk[0]): maps for chunk, maps, _ in work(section, chunks, None, client) if maps is not None}
    parts = [found[int(chunk[0])] for chunk in chunks]
    return joined(parts)[:2]


def _spread(section: SharedSection, genes: np.ndarray, mean: np.ndarray, std: np.ndarray | None) -> np.ndarray:
    """A standard deviation of counts as one in model space."""
    assert std is not None  # for types: there are draws
    distilled = section.distilled
    priors = torch.from_numpy(distilled.priors(genes)[(..., *section.crop)])
    residual, scale = Residual(closed_form(priors)), torch.from_numpy(distilled.gene_mean[genes, None, None])
    rate = torch.from_numpy(mean) / scale
    return (torch.from_numpy(std) / (slope(rate, residual) * scale)).numpy().astype(np.float32)


def likeness(distilled: Distilled, genes: np.ndarray) -> np.ndarray:
    """How much every gene is like some, by what the network knows of it: ``(genes, len(genes))``, rows sum to one."""
    token = (distilled.token - distilled.token.mean(0)) / np.maximum(distilled.token.std(0), 1e-6)
    distance = ((token[:, None] - token[genes]) ** 2).sum(2)
    places = distilled.coexpression(np.arange(len(token)))
    weights = PLACES * places @ places[genes].T - 0.5 * distance / LIKE**2
    weights = np.exp(weights - weights.max(1, keepdims=True))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
