"""Tasks whose truth are single cells: pseudo-spots from half of the molecules, and the real spots of a neighbour.

The molecules that are scored were never in the spots. Maps are predicted once, in bins of ``BIN_UM``, and scored in
blocks of those: at 20 µm counting noise rules, at 80 µm structure does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from baselines import Method
from tasks import Row, abundant_genes, cell_scores, coherence

from hadmst_sc.contract import Observation

BIN_UM = 20.0


@dataclass(frozen=True, eq=False)
class Case:
    """One section with its truth.

    Parameters
    ----------
    name
        Of the section in the results.
    obs
        What a method is given.
    truth
        ``(genes, ny, nx)`` counts per bin of molecules that ``obs`` has not seen.
    window
        ``(ny, nx)`` bool, bins in tissue where every cell is known.
    blocks
        Edges of the scored blocks, in bins.
    """

    name: str
    obs: Observation
    truth: np.ndarray
    window: np.ndarray
    blocks: tuple[int, ...]


def breast_simulated(n_genes: int) -> Case:
    """Xenium breast crop with its H&E: spots from one half of the molecules, truth from the other."""
    return _simulated("breast, simulated spots", "xenium_breast_crop", n_genes)


def brain_simulated(n_genes: int) -> Case:
    """Xenium mouse brain, which has no image."""
    return _simulated("brain, no image", "xenium_mouse_brain", n_genes)


def breast_real(n_genes: int) -> Case:
    """Real Visium spots of the neighbouring section; the truth are all molecules of the crop."""
    from hadmst_sc.datasets import bin_cells, load, load_cells
    from hadmst_sc.datasets.observe import observe

    table, cells = load("xenium_breast_visium").tables["table"], load_cells("xenium_breast_crop")
    genes = _abundant(table[:, table.var_names.intersection(cells.var_names)], n_genes)
    obs = observe("xenium_breast_visium", genes=genes, bin_um=BIN_UM)
    return _case("breast, real spots", obs, bin_cells(cells[:, genes], obs.grid), cells, (1, 2, 4))


# The real spots come from the neighbouring section and were laid on the image by hand; the truth is the image's own
# section. So the spots are moved onto the image, and not the image under the spots as elsewhere.
ALIGN: dict[str, bool | str] = {"breast_real": "spots"}
CASES = {"breast_simulated": breast_simulated, "brain_simulated": brain_simulated, "breast_real": breast_real}


def _simulated(name: str, section: str, n_genes: int) -> Case:
    from hadmst_sc.datasets.observe import observe_cells

    obs, truth, rest = observe_cells(section, choose=lambda spots: _abundant(spots, n_genes), bin_um=BIN_UM)
    return _case(name, obs, truth, rest, (1, 2))


def _abundant(table: AnnData, n_genes: int) -> list[str]:
    counts = table.X.toarray() if hasattr(table.X, "toarray") else np.asarray(table.X)
    return table.var_names[abundant_genes(counts, n_genes)].tolist()


def _case(name: str, obs: Observation, truth: np.ndarray, cells: AnnData, blocks: tuple[int, ...]) -> Case:
    at = obs.grid.px_to_bins(cells.obsm["spatial"])
    (x0, y0), (x1, y1) = np.ceil(at.min(0)).astype(int), np.floor(at.max(0)).astype(int)
    window = np.zeros(obs.grid.shape, bool)
    window[y0:y1, x0:x1] = obs.inside[y0:y1, x0:x1]
    return Case(name, obs, truth, window, blocks)


def in_blocks(maps: np.ndarray, edge: int) -> np.ndarray:
    """``(genes, ny, nx)`` summed over blocks of ``edge`` × ``edge`` bins; an incomplete last block is left out."""
    ny, nx = (side // edge for side in maps.shape[1:])
    return maps[:, : ny * edge, : nx * edge].reshape(len(maps), ny, edge, nx, edge).sum((2, 4))


def highres(methods: Mapping[str, Method], case: Case) -> Iterator[Row]:
    """Score each method's maps against the molecules it has not seen, at every block size."""
    depth, genes = case.obs.counts.mean(0), case.obs.genes
    for method, predict in methods.items():
        started = time.perf_counter()
        maps = predict(case.obs)
        seconds = time.perf_counter() - started
        for edge in case.blocks:
            whole = in_blocks(case.window[None].astype(int), edge)[0] == edge**2
            predicted, truth = in_blocks(maps, edge), in_blocks(case.truth, edge)
            section = f"{case.name}, {edge * BIN_UM:g} µm"
            yield Row(
                section,
                section,
                method,
                seconds,
                genes,
                ("real",) * len(genes),
                depth,
                cell_scores(predicted, truth, whole),
                len(case.obs.spots),
                {"coherence": coherence(predicted, truth, whole)},
            )
