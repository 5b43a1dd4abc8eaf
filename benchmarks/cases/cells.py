"""Single cells or molecules as truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import downstream
import legacy
import numpy as np
import scores
from anndata import AnnData

from cases.case import ByScale, Case, abundant, of_maps
from hadmst_sc.datasets.public import bin_cells, load, load_cells, observe, observe_cells
from hadmst_sc.section.observation import Observation, Prediction


def simulated_spots(
    *, section: str, n_genes: int, bin_um: float, blocks: Sequence[int], pitch_um: float = 100.0, **options: Any
) -> Case:
    """Pseudo-spots from one half of the molecules of a section; the truth is the other half."""
    return _cells(*pseudo_spots(section, n_genes, bin_um, pitch_um), blocks, **options)


def pseudo_spots(
    section: str, n_genes: int, bin_um: float, pitch_um: float = 100.0
) -> tuple[Observation, np.ndarray, AnnData]:
    """Spots of one half of the molecules, maps of the other half ``(genes, ny, nx)``, and the cells.

    Spots are 0.55 pitches wide, as those of Visium.
    """
    geometry = {"spot_um": 0.55 * pitch_um, "pitch_um": pitch_um}
    return observe_cells(section, choose=lambda spots: abundant(spots, n_genes), bin_um=bin_um, **geometry)


def real_spots(*, n_genes: int, bin_um: float, blocks: Sequence[int], **options: Any) -> Case:
    """Real Visium spots of the neighbouring section; the truth are all molecules of the breast crop."""
    return _cells(*neighbours(n_genes, bin_um), blocks, **options)


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
        return f"{edge * obs.grid.bin_um:g} µm", scores.whole_blocks(window, edge), scores.in_blocks(truth, edge)

    def score(predictions: Sequence[Prediction]) -> ByScale:
        found = {}
        for edge in blocks:
            scale, whole, true = blocks_of(edge)
            predicted = scores.in_blocks(predictions[0].mean, edge)
            here = of_maps(predicted, true, whole, scores.of_counts, uses=edge == blocks[0])
            if markers:
                types = downstream.colocalisation(predicted, true, whole, obs.genes, downstream.BREAST_MARKERS)
                here |= {"colocalisation": types["correlation"], "colocalisation_rms": types["rms"]}
            if published and edge == blocks[0]:
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
