"""Sections of any size with the look of tissue: a real one, mirrored side by side, with any number of genes."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData
from spatialdata.models import ShapesModel
from spatialdata.transformations import get_transformation

from hadmst_sc import datasets
from hadmst_sc.datasets.visium import as_visium

SECTION = "visium_mouse_brain"


def mirrored(tiles: int, n_genes: int) -> SpatialData:
    """The mouse brain ``tiles × tiles`` times, each mirrored at its neighbours.

    Genes beyond those of its table are drawn from these again, with the counting noise of another section.
    """
    section = datasets.load(SECTION)
    table, metadata = section["table"], section["table"].uns["spatial"][SECTION]["metadata"]
    image = np.asarray(section[f"{SECTION}_full_image"]["scale0"]["image"].data)
    height, width = image.shape[1:]
    tiled = np.pad(image, ((0, 0), (0, (tiles - 1) * height), (0, (tiles - 1) * width)), mode="symmetric")
    x, y = table.obsm["spatial"].T
    places = [
        np.stack([_mirrored(x, width, column), _mirrored(y, height, row)], 1)
        for row in range(tiles)
        for column in range(tiles)
    ]
    counts = _with_genes(sparse.csc_matrix(table.X), n_genes)
    names = [f"{gene}.{i // table.n_vars}" if i >= table.n_vars else gene for i, gene in _names(table, n_genes)]
    whole = AnnData(sparse.vstack([counts] * tiles**2, format="csr"))
    whole.var_names = names
    whole.obs_names = [f"{spot}-{tile}" for tile in range(tiles**2) for spot in table.obs_names]
    whole.obsm["spatial"] = np.concatenate(places)
    whole.uns["spatial"] = {SECTION: {"metadata": dict(metadata)}}
    return as_visium(SECTION, np.ascontiguousarray(tiled), whole, metadata["spot_um"] / metadata["um_per_px"])


NUCLEI = "nuclei"
NUCLEUS_UM = (2.0, 5.0)  # radii


def with_nuclei(section: SpatialData, n: int) -> None:
    """Add ``n`` circles around the spots, evenly spread over the tissue and between spots, as shapes ``NUCLEI``."""
    metadata = section["table"].uns["spatial"][SECTION]["metadata"]
    rng, px = np.random.default_rng(0), 1 / metadata["um_per_px"]
    spots = section["table"].obsm["spatial"]
    places = spots[rng.integers(len(spots), size=n)] + rng.uniform(-0.5, 0.5, (n, 2)) * metadata["pitch_um"] * px
    radius = rng.uniform(*NUCLEUS_UM, n) * px
    like = get_transformation(section[SECTION], get_all=True)
    section[NUCLEI] = ShapesModel.parse(places, geometry=0, radius=radius, transformations=like)


def _mirrored(at: np.ndarray, side: int, tile: int) -> np.ndarray:
    return tile * side + (side - at if tile % 2 else at)


def _names(table: AnnData, n_genes: int) -> list[tuple[int, str]]:
    return [(i, str(table.var_names[i % table.n_vars])) for i in range(n_genes)]


def _with_genes(counts: sparse.csc_matrix, n_genes: int) -> sparse.csr_matrix:
    rng, parts = np.random.default_rng(0), [counts[:, :n_genes]]
    while (have := sum(part.shape[1] for part in parts)) < n_genes:
        again = counts[:, : n_genes - have].copy()
        again.data = rng.poisson(again.data).astype(again.data.dtype)
        parts.append(again)
    return sparse.hstack(parts, format="csr")
