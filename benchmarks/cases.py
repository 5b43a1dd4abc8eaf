"""Sections as methods are given them, beside the truth that scores them.

``CASES`` names the functions that ``benchmark.toml`` may name; each makes a :class:`Case` from that file's options
alone. All seeds are fixed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import disturb
import downstream
import joblib
import legacy
import numpy as np
import pandas as pd
import scores
from anndata import AnnData
from scores import Scores

from hadmst_sc import metrics
from hadmst_sc.datasets.public import bin_cells, load, load_cells, observe, observe_cells
from hadmst_sc.phantom.simulate import HELD_OUT_STYLES, TRAIN_STYLES, Phantom, simulate
from hadmst_sc.section.measurement import degrade
from hadmst_sc.section.observation import Observation

FIRST_TEST_SEED = 900_000  # training draws its phantoms from seeds below 100,000
FOLD_SEED = 0
N_FOLDS = 4
MIN_PREVALENCE = 0.05  # of the spots, for a gene to be scored
DOMAIN_SEEDS = (0, 1, 2)  # of the clustering; their mean is scored
SPOTS = "spots"
ByScale = dict[str, Scores]
# Every method has a process of its own; the sections that they share are read and drawn once for each run.
CACHE = "HADMST_BENCHMARK_CACHE"
once = joblib.Memory(os.environ.get(CACHE), verbose=0).cache


@dataclass(frozen=True, eq=False)
class Case:
    """One section with its truth."""

    section: Observation  # all of it, for what is told about it
    given: tuple[Observation, ...]  # to a method: one, or one per fold
    score: Callable[[Sequence[np.ndarray]], ByScale]  # from the maps of each of those, in that order, to scores
    kinds: tuple[str, ...] = ()  # what drives each gene; "real" where nobody knows
    references: Mapping[str, Callable[[], ByScale]] = field(default_factory=dict)  # ceilings, the truth, the spots
    n_scored: int | None = None  # so many of the genes are scored, the first; None: all

    def about(self) -> dict[str, Any]:
        """Genes, what drives them, and their mean counts per spot."""
        obs, n = self.section, slice(self.n_scored)
        return {
            "n_spots": len(obs.spots),
            "bins": int(obs.inside.sum()),
            "genes": list(obs.genes[n]),
            "kinds": list(self.kinds or ["real"] * len(obs.genes[n])),
            "counts_per_spot": np.round(obs.counts[:, n].mean(0, dtype=float), 4).tolist(),
        }


def build(case: str, options: Mapping[str, Any], disturbance: tuple[str, float] | None = None) -> Case:
    """The case of that name, its section disturbed where asked for; the truth stays."""
    made = CASES[case](**options)
    if disturbance is None:
        return made
    kind, by = disturbance
    return replace(made, given=tuple(disturb.DISTURBANCES[kind](obs, by) for obs in made.given))


# --- phantoms ---------------------------------------------------------------------------------------------------------


def phantom_plan(n_seeds: int, *, first: int = FIRST_TEST_SEED, apart: int = 10_000) -> list[tuple[str, int, str]]:
    """``(set, seed, style)`` of each test phantom: ``n_seeds`` per set from ``first`` on, styles in turn."""
    sets = {"in distribution": TRAIN_STYLES, "held-out styles": HELD_OUT_STYLES}
    return [
        (name, first + apart * number + i, styles[i % len(styles)])
        for number, (name, styles) in enumerate(sets.items())
        for i in range(n_seeds)
    ]


@once
def _simulated(seed: int, style: str, **options: Any) -> Phantom:
    return simulate(seed, style=style, **options)


def phantom(*, seed: int, style: str, **options: Any) -> Case:
    """Maps against the true rate of a phantom, before counting noise, and its regions against domains found in them."""
    made = _simulated(seed, style, **options)
    obs = made.observation
    scale = f"{obs.grid.bin_um:g} µm"

    def score(maps: Sequence[np.ndarray]) -> ByScale:
        return {scale: _of_maps(maps[0], made.rate, obs.inside, scores.of_rates)}

    return Case(obs, (obs,), score, made.kinds, {"true rate": lambda: score([made.rate])})


def _of_maps(predicted: np.ndarray, truth: np.ndarray, inside: np.ndarray, of_genes: Callable[..., Scores]) -> Scores:
    return of_genes(predicted, truth, inside) | {
        "ssim": metrics.ssim(predicted, truth, inside),
        "coherence": scores.coherence(predicted, truth, inside),
        "moran": downstream.moran_agreement(predicted, truth, inside),
    }


# --- single cells as truth --------------------------------------------------------------------------------------------


def simulated_spots(*, section: str, n_genes: int, bin_um: float, blocks: Sequence[int], **options: Any) -> Case:
    """Pseudo-spots from one half of the molecules of a Xenium section; the truth is the other half."""
    return _cells(*pseudo_spots(section, n_genes, bin_um), blocks, **options)


@once
def pseudo_spots(section: str, n_genes: int, bin_um: float) -> tuple[Observation, np.ndarray, AnnData]:
    """Spots of one half of the molecules, maps of the other half ``(genes, ny, nx)``, and the cells."""
    return observe_cells(section, choose=lambda spots: abundant(spots, n_genes), bin_um=bin_um)


def real_spots(*, n_genes: int, bin_um: float, blocks: Sequence[int], **options: Any) -> Case:
    """Real Visium spots of the neighbouring section; the truth are all molecules of the breast crop."""
    return _cells(*neighbours(n_genes, bin_um), blocks, **options)


@once
def neighbours(n_genes: int, bin_um: float) -> tuple[Observation, np.ndarray, AnnData]:
    """Real spots, maps of all molecules of the neighbouring section ``(genes, ny, nx)``, and its cells."""
    table, cells = load("xenium_breast_visium").tables["table"], load_cells("xenium_breast_crop")
    genes = abundant(table[:, table.var_names.intersection(cells.var_names)], n_genes)
    obs = observe("xenium_breast_visium", genes=genes, bin_um=bin_um)
    return obs, bin_cells(cells[:, genes], obs.grid), cells


def _cells(
    obs: Observation,
    truth: np.ndarray,
    cells: AnnData,
    blocks: Sequence[int],
    *,
    markers: bool = False,
    published: bool = False,
) -> Case:
    """Maps are predicted once and scored in blocks of bins: counting noise rules in small ones, structure in large."""
    window = where_known(obs, cells)

    def blocks_of(edge: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Name of the scale, which blocks lie wholly in the window, and their truth."""
        whole = scores.in_blocks(window[None].astype(int), edge)[0] == edge**2
        return f"{edge * obs.grid.bin_um:g} µm", whole, scores.in_blocks(truth, edge)

    def score(maps: Sequence[np.ndarray]) -> ByScale:
        found = {}
        for edge in blocks:
            scale, whole, true = blocks_of(edge)
            predicted = scores.in_blocks(maps[0], edge)
            here = _of_maps(predicted, true, whole, scores.of_counts)
            if markers:
                types = downstream.colocalisation(predicted, true, whole, obs.genes, downstream.BREAST_MARKERS)
                here |= {"colocalisation": types["correlation"], "colocalisation_rms": types["rms"]}
            if published:
                here |= {name: score_of(predicted, true, whole) for name, score_of in legacy.SCORES.items()}
            found[scale] = here
        return found

    def ceiling() -> ByScale:
        of_blocks = (blocks_of(edge) for edge in blocks)
        return {scale: {"pcc": scores.split_half_ceiling(true[:, whole].T)} for scale, whole, true in of_blocks}

    return Case(obs, (obs,), score, (), {"split-half ceiling": ceiling})


def where_known(obs: Observation, cells: AnnData) -> np.ndarray:
    """Bins of the tissue whose cells are all known, ``(ny, nx)`` bool."""
    at = obs.grid.px_to_bins(cells.obsm["spatial"])
    (x0, y0), (x1, y1) = np.ceil(at.min(0)).astype(int), np.floor(at.max(0)).astype(int)
    window = np.zeros(obs.grid.shape, bool)
    window[y0:y1, x0:x1] = obs.inside[y0:y1, x0:x1]
    return window


def abundant(table: AnnData, n_genes: int) -> list[str]:
    """Names of the genes with the most counts, of those seen in enough spots; most abundant first."""
    counts = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
    return table.var_names[abundant_genes(counts, n_genes)].tolist()


# --- real sections, spots held out ------------------------------------------------------------------------------------


def folds(n_spots: int, n_folds: int = N_FOLDS, seed: int = FOLD_SEED) -> np.ndarray:
    """``(spots,)`` fold of each spot: a random partition into equal parts (± one spot)."""
    return np.random.default_rng(seed).permutation(n_spots) % n_folds


def abundant_genes(counts: np.ndarray, n_genes: int) -> np.ndarray:
    """Columns of ``(spots, genes)`` with the most counts, of those seen in enough spots; most abundant first."""
    seen = np.flatnonzero((counts > 0).mean(0) >= MIN_PREVALENCE)
    return seen[np.argsort(-counts[:, seen].sum(0), kind="stable")][:n_genes]


@once
def load_section(name: str, n_genes: int, bin_um: float) -> Observation:
    """A public section with its most abundant genes."""
    return observe(name, genes=abundant(load(name).tables["table"], n_genes), bin_um=bin_um)


def holdout(*, section: str, n_genes: int, bin_um: float, n_folds: int = N_FOLDS, n_scored: int | None = None) -> Case:
    """Spot sums, through ``A``, of maps that never saw those spots.

    Of four folds the first ``n_folds`` are used, and pooled before scoring. With ``n_scored`` the scored genes are that
    many, at even ranks of the 200 most abundant and the same for every ``n_genes``: what a larger panel is worth.
    """
    given = _panel(section, n_genes, n_scored, bin_um) if n_scored else load_section(section, n_genes, bin_um)
    return hold_out(given, n_folds, n_scored)


def hold_out(obs: Observation, n_folds: int = N_FOLDS, n_scored: int | None = None) -> Case:
    """The same of an observation, of whose genes the first ``n_scored`` are scored."""
    fold = folds(len(obs.spots))
    scored, n = fold < n_folds, slice(n_scored)

    def score(maps: Sequence[np.ndarray]) -> ByScale:
        predicted = np.zeros_like(obs.counts)
        for k in range(n_folds):
            predicted[fold == k] = degrade(maps[k], obs.measurement.subset(fold == k))
        of_spots = predicted[scored, n].T, obs.counts[scored, n].T, np.ones(scored.sum(), bool)
        return {"spots": scores.of_counts(*of_spots) | {"coherence": scores.coherence(*of_spots)}}

    def ceiling() -> ByScale:
        return {"spots": {"pcc": scores.split_half_ceiling(obs.counts[scored, n])}}

    given = tuple(obs.subset_spots(fold != k) for k in range(n_folds))
    return Case(obs, given, score, (), {"split-half ceiling": ceiling}, n_scored)


PANEL = 200  # most abundant genes, from which the scored ones of a panel are taken


@once
def _panel(section: str, n_genes: int, n_scored: int, bin_um: float) -> Observation:
    """Scored genes first, then others drawn at random from all that are seen in enough spots."""
    names = abundant(load(section).tables["table"], 10**9)
    ranks = np.linspace(0, PANEL - 1, n_scored).round().astype(int)
    rest = np.setdiff1d(np.arange(len(names)), ranks)
    if n_genes - n_scored > len(rest):
        raise ValueError(f"`n_genes` needs at most {len(names)} for {section}, but is {n_genes}.")
    more = np.random.default_rng(FOLD_SEED).permutation(rest)[: n_genes - n_scored]
    return observe(section, genes=[names[i] for i in (*ranks, *more)], bin_um=bin_um)


# --- domains ----------------------------------------------------------------------------------------------------------


@once
def _annotation(section: str) -> pd.Series:
    return load(section).tables["table"].obs["layer"].astype(object)


def layers(*, section: str, n_genes: int, bin_um: float) -> Case:
    """Clusters of bins against the annotated layers of the spots."""
    obs = load_section(section, n_genes, bin_um)
    annotated = _annotation(section).reindex(list(obs.spots)).to_numpy()
    n_domains = len({layer for layer in annotated if isinstance(layer, str)})
    return _domains(obs, n_domains, "spots", lambda found: downstream.domain_ari_spots(found, obs, annotated))


def phantom_domains(*, seed: int, style: str, **options: Any) -> Case:
    """Clusters of bins against the true regions of a phantom."""
    made = _simulated(seed, style, **options)
    obs, regions = made.observation, made.regions
    scored = obs.inside & (regions >= 0)
    n_domains = len(np.unique(regions[scored]))
    case = _domains(obs, n_domains, "bins", lambda found: downstream.domain_ari_bins(found, regions, scored))
    true_rate = {"true rate": lambda: case.score([made.rate])}
    return replace(case, kinds=made.kinds, references={**case.references, **true_rate})


def _domains(obs: Observation, n_domains: int, scale: str, ari: Callable[[np.ndarray], float]) -> Case:
    """Domains, ``(ny, nx)``, found in maps; for reference in the spots, each bin being of its nearest spot's domain."""

    def mean(found: Callable[[int], np.ndarray]) -> ByScale:
        return {scale: {"ari": float(np.mean([ari(found(seed)) for seed in DOMAIN_SEEDS]))}}

    def of_spots(seed: int) -> np.ndarray:
        return downstream.domains_to_bins(downstream.domains_of_spots(obs.counts, n_domains, seed), obs)

    def score(maps: Sequence[np.ndarray]) -> ByScale:
        return mean(lambda seed: downstream.domains(maps[0], obs.inside, n_domains, seed))

    return Case(obs, (obs,), score, (), {SPOTS: lambda: mean(of_spots)})


CASES: dict[str, Callable[..., Case]] = {
    case.__name__: case for case in (phantom, simulated_spots, real_spots, holdout, layers, phantom_domains)
}
