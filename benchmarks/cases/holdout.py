"""Real sections, of which some spots are hidden before anything is read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scores
from spatialdata import SpatialData

from cases.case import ByScale, Case, abundant
from hadmst_sc.datasets.public import load
from hadmst_sc.io.read import read_observation
from hadmst_sc.section.measurement import Measurement, degrade, discs
from hadmst_sc.section.observation import Observation, Prediction

FOLD_SEED = 0
N_FOLDS = 4
BLOCK = 4  # edge of a block of hidden spots, in pitches
PANEL = 200  # most abundant genes, from which the scored ones of a panel are taken


def folds(n_spots: int, n_folds: int = N_FOLDS, seed: int = FOLD_SEED) -> np.ndarray:
    """``(spots,)`` fold of each spot: a random partition into equal parts (± one spot)."""
    return np.random.default_rng(seed).permutation(n_spots) % n_folds


def block_folds(centres: np.ndarray, pitch: float, n_folds: int = N_FOLDS, seed: int = FOLD_SEED) -> np.ndarray:
    """The same for squares of ``BLOCK`` × ``BLOCK`` pitches: spots of one square are hidden together."""
    square = np.floor((centres - centres.min(0)) / (BLOCK * pitch) + 1e-6).astype(int)
    _, block = np.unique(square, axis=0, return_inverse=True)
    block = block.ravel()
    return folds(block.max() + 1, n_folds, seed)[block]


def hide(sdata: SpatialData, hidden: np.ndarray) -> SpatialData:
    """The section without some rows of its table, and without their spots."""
    table = sdata.tables["table"]
    region, of_rows = table.uns["spatialdata_attrs"]["region"], table.obs["spot_id"].to_numpy()
    region = region if isinstance(region, str) else region[0]
    shapes, images = sdata.shapes[region], {name: sdata.images[name] for name in sdata.images}
    kept = shapes[~shapes.index.isin(of_rows[hidden])]
    return SpatialData(images=images, shapes={region: kept}, tables={"table": table[~hidden].copy()})


def footprints(whole: Observation, part: Observation, rows: np.ndarray) -> Measurement:
    """Spots of ``whole`` on the grid of ``part``, whose scale was told from fewer spots."""
    assert whole.source is not None and whole.source.spot_um is not None
    centres = whole.measurement.centres[rows] * whole.grid.px_per_bin / part.grid.px_per_bin
    return discs(centres, whole.source.spot_um / part.grid.bin_um, part.grid.shape)


def split(
    section: str, genes: tuple[str, ...], bin_um: float, how: str = "random", n_folds: int = N_FOLDS
) -> tuple[Observation, tuple[Observation, ...], np.ndarray]:
    """All of a section; what each of the first ``n_folds`` folds leaves of it; and the fold of each spot.

    ``how`` is ``"random"`` or ``"blocks"``. Tissue, grid, scale and registration of a fold have not seen its spots.
    """
    image, sdata = f"{section}_full_image", load(section)
    whole = read_observation(sdata, image, genes=genes, bin_um=bin_um)
    fold = folds(len(whole.spots))
    if how == "blocks":
        fold = block_folds(whole.measurement.centres, whole.measurement.pitch)
    order = {spot: row for row, spot in enumerate(sdata.tables["table"].obs_names)}
    rows = np.array([order[spot] for spot in whole.spots])
    parts = []
    for k in range(n_folds):
        hidden = np.zeros(len(order), bool)
        hidden[rows[fold == k]] = True
        parts.append(read_observation(hide(sdata, hidden), image, genes=genes, bin_um=bin_um))
    return whole, tuple(parts), fold


def holdout(*, section: str, n_genes: int, bin_um: float, how: str = "random", n_folds: int = N_FOLDS) -> Case:
    """Spot sums, through ``A``, of maps that never saw those spots; folds are pooled before scoring."""
    genes = tuple(abundant(load(section).tables["table"], n_genes))
    return _hold_out(*split(section, genes, bin_um, how, n_folds))


def panel(*, section: str, n_genes: int, n_scored: int, bin_um: float, n_folds: int = N_FOLDS) -> Case:
    """The same ten genes, at even ranks of the 200 most abundant, predicted among more and more others."""
    names = abundant(load(section).tables["table"], 10**9)
    ranks = np.linspace(0, PANEL - 1, n_scored).round().astype(int)
    rest = np.setdiff1d(np.arange(len(names)), ranks)
    if n_genes - n_scored > len(rest):
        raise ValueError(f"`n_genes` needs at most {len(names)} for {section}, but is {n_genes}.")
    more = np.random.default_rng(FOLD_SEED).permutation(rest)[: n_genes - n_scored]
    genes = tuple(names[i] for i in (*ranks, *more))
    return _hold_out(*split(section, genes, bin_um, n_folds=n_folds), n_scored)


def _hold_out(obs: Observation, parts: tuple[Observation, ...], fold: np.ndarray, n_scored: int | None = None) -> Case:
    scored, n = fold < len(parts), slice(n_scored)
    hidden = [footprints(obs, part, np.flatnonzero(fold == k)) for k, part in enumerate(parts)]

    def score(found: Sequence[Prediction]) -> ByScale:
        predicted = np.zeros_like(obs.counts)
        for k, one in enumerate(found):
            predicted[fold == k] = degrade(np.asarray(one.mean), hidden[k])
        ours, truth = predicted[scored, n].T, obs.counts[scored, n].T
        everywhere = np.ones(scored.sum(), bool)
        centres = obs.measurement.centres[scored]
        return {
            "spots": scores.of_counts(ours, truth, everywhere)
            | {
                "coherence": scores.coherence(ours, truth, everywhere),
                "resampled": scores.resampled(ours, truth, centres),
            }
        }

    def ceiling() -> ByScale:
        return {"spots": {"pcc": scores.split_half_ceiling(obs.counts[scored, n])}}

    return Case(obs, parts, score, (), {"split-half ceiling": ceiling}, n_scored)
