"""Run the network on metagenes and a few landmark genes, and transfer its correction to all other genes.

Two things are known about a gene that the network does not see: its shares of the metagenes, and how the network
changed similar genes (similar depth and predictability, same places). Both correct its closed form.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from hadmst_sc.distillation.components import Panel
from hadmst_sc.distillation.genes import Distilled, decoder
from hadmst_sc.distillation.metagenes import metagenes
from hadmst_sc.inference.chunk import Chunk
from hadmst_sc.inference.estimators import ByMetagenes
from hadmst_sc.inference.shared import SharedSection, joined
from hadmst_sc.inference.workers import work
from hadmst_sc.trust.gate import spaced

N_LANDMARKS = 48  # genes that the network sees on behalf of all
LIKE = 1.5  # width of the similarity of genes, in standard deviations of the token
PLACES = 3.0  # log-weight of genes in the same places
TINY = 1e-9  # counts


def by_metagenes(section: SharedSection, *, without: np.ndarray | None = None) -> SharedSection:
    """Replace the network of a section by metagenes and landmark genes; genes of ``without`` are not landmarks."""
    distilled, settings = section.distilled, section.settings
    n = settings.n_metagenes
    assert n is not None  # for types: `n_metagenes` was passed
    found = metagenes(distilled.panel, n)
    alone = replace(settings, consistency="off")  # each gene gets its own consistency later
    seen = replace(section, share=1.0, settings=alone, variance=None, support=None)
    panel = Panel(found.counts, distilled.measurement)
    few = replace(seen, distilled=decoder(distilled.section, panel), genes=tuple(f"metagene {k}" for k in range(n)))
    maps = _maps(few, np.arange(n))
    genes = landmarks(distilled.panel, without)
    of_landmarks = Chunk(section, genes, torch.device("cpu"))
    network, closed = _maps(seen, genes), of_landmarks.counts(of_landmarks.residual.base).numpy()
    change = np.log(np.maximum(network, TINY) / np.maximum(closed, TINY)).astype(np.float32)
    estimator = ByMetagenes(maps, found.shares, change, likeness(distilled, genes))
    return replace(section, estimator=estimator)


def landmarks(panel: Panel, without: np.ndarray | None = None) -> np.ndarray:
    """Indices of genes evenly spaced by abundance, not those of ``without`` unless that leaves none."""
    ranked = np.argsort(-panel.mean, kind="stable")
    others = ranked if without is None else ranked[~np.isin(ranked, without)]
    return spaced(others if len(others) else ranked, N_LANDMARKS)


def _maps(section: SharedSection, genes: np.ndarray) -> np.ndarray:
    """Estimates of some genes, ``(len(genes), ny, nx)``."""
    found = {int(chunk[0]): maps for chunk, maps, _ in work(section, genes, None) if maps is not None}
    return joined([found[gene] for gene in genes.tolist() if gene in found]).mean


def likeness(distilled: Distilled, genes: np.ndarray) -> np.ndarray:
    """Similarity of every gene to the given ones, by token and places: ``(all, len(genes))``, rows sum to one."""
    token = (distilled.token - distilled.token.mean(0)) / np.maximum(distilled.token.std(0), 1e-6)
    distance = ((token[:, None] - token[genes]) ** 2).sum(2)
    places = distilled.coexpression(np.arange(len(token)))
    weights = PLACES * places @ places[genes].T - 0.5 * distance / LIKE**2
    weights = np.exp(weights - weights.max(1, keepdims=True))
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
