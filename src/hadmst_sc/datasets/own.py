"""The user's own section as arrays for training: its spots, or pseudo-spots made from finer cells or bins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import TableModel

from hadmst_sc.datasets.public import bin_cells
from hadmst_sc.io import open_store, read_observation
from hadmst_sc.io.counts import matrix_of, places_of, rows_as_csr
from hadmst_sc.io.genes import FEATURE_TYPES, gene_columns
from hadmst_sc.io.resolve import levels, pair, transform
from hadmst_sc.pp.add_spots import add_spots
from hadmst_sc.pp.degrade import degrade
from hadmst_sc.section.errors import MissingKeyError, Problems, logger
from hadmst_sc.section.observation import Observation

MAX_GENES = 600  # maximum with a truth: its maps are dense, and training uses no more genes of a section
STORE_MARKS = ("zarr.json", ".zgroup")


def own_section(
    path: str | Path,
    image_key: str,
    *,
    table_key: str | None = None,
    shapes_key: str | None = None,
    coordinate_system: str | None = None,
    layer: str | None = None,
    genes: Sequence[str] | int | None = None,
    bin_um: float = 20.0,
    spot_um: float | None = None,
    pitch_um: float | None = None,
    tissue_key: str | None = None,
    truth_key: str | None = None,
    um_per_unit: float | None = None,
    random_state: int = 0,
) -> tuple[Observation, np.ndarray | None]:
    """Read a section for training; the store is not changed, and no code in it is run.

    Parameters
    ----------
    path
        SpatialData store.
    image_key, table_key, shapes_key, coordinate_system, layer, bin_um, spot_um, pitch_um, tissue_key
        As in :func:`~hadmst_sc.io.read_observation`. Pseudo-spots are 55 µm wide and 100 µm apart by default; with
        a truth, ``shapes_key`` and ``layer`` are those of the truth.
    genes
        Names, or a number for the most informative. ``None`` takes all, but at most 600 with a truth.
    truth_key
        Table of counts of cells, or of bins smaller than ``bin_um``, of the same section. If it annotates shapes or
        points, positions are their centroids, transformed to the image; otherwise they are ``obsm["spatial"]``, as
        (x, y) in pixels of the image's finest level.
    um_per_unit
        µm per unit of these positions, in the shapes' own coordinates; needed with ``truth_key``.
    random_state
        Seed of the split of the molecules: one half makes the spots, the other half is the truth.

    Returns
    -------
    The section, and ``(genes, ny, nx)`` counts per bin that are not in its spots; ``None`` without ``truth_key``.

    Raises
    ------
    FileNotFoundError
        If there is no store at ``path``.
    KeyError, ValueError, ContractError
        As :func:`~hadmst_sc.io.read_observation` and :func:`~hadmst_sc.pp.degrade` raise them.
    """
    path = Path(path)
    if not any((path / mark).is_file() for mark in STORE_MARKS):
        found = "is not a zarr store" if path.exists() else "does not exist"
        raise FileNotFoundError(f"`path` needs a zarr store of SpatialData, but {path} {found}. Correct `path`.")
    sdata = open_store(path)
    sizes: dict[str, Any] = {"bin_um": bin_um, "spot_um": spot_um, "pitch_um": pitch_um, "tissue_key": tissue_key}
    if truth_key is None:
        table_key = table_key or "table"
        if genes is None and table_key in sdata.tables:
            var = sdata.tables[table_key].var
            genes = var.index[gene_columns(var)].tolist()
        obs = read_observation(
            sdata,
            image_key,
            table_key=table_key,
            shapes_key=shapes_key,
            coordinate_system=coordinate_system,
            layer=layer,
            genes=genes,
            **sizes,
        )
        return obs, None
    if um_per_unit is None:
        raise ValueError("`truth_key` needs `um_per_unit`, the µm per unit of its positions. Pass `um_per_unit=1.0`.")
    _check_keys(sdata, image_key, truth_key, layer, tissue_key)
    cells, um_per_px = _cells(sdata, image_key, truth_key, shapes_key, coordinate_system, layer, um_per_unit)
    sizes |= {"spot_um": spot_um or 55.0, "pitch_um": pitch_um or 100.0}
    spots, rest = degrade(
        cells,
        spot_um=sizes["spot_um"],
        pitch_um=sizes["pitch_um"],
        um_per_unit=um_per_px,
        split=0.5,
        random_state=random_state,
    )
    made = _with_spots(sdata, image_key, truth_key, spots, tissue_key)
    genes = min(MAX_GENES, len(gene_columns(cells.var))) if genes is None else genes
    obs = read_observation(made, image_key, table_key=truth_key, genes=genes, **sizes)
    return obs, bin_cells(rest[:, list(obs.genes)], obs.grid)


def _check_keys(sdata: SpatialData, image_key: str, truth_key: str, layer: str | None, tissue_key: str | None) -> None:
    problems = Problems(f"cannot pair image {image_key!r} with truth {truth_key!r}")
    masks = [*sdata.labels, *sdata.shapes]
    if image_key not in sdata.images:
        problems.missing("image_key", image_key, "sdata.images", list(sdata.images))
    if truth_key not in sdata.tables:
        problems.missing("truth_key", truth_key, "sdata.tables", list(sdata.tables))
    elif layer is not None and layer not in places_of(sdata.tables[truth_key]):
        problems.missing("layer", layer, f"sdata[{truth_key!r}].layers", places_of(sdata.tables[truth_key]))
    if tissue_key is not None and tissue_key not in masks:
        problems.missing("tissue_key", tissue_key, "sdata.labels or sdata.shapes", masks)
    problems.raise_if_any()


def _cells(
    sdata: SpatialData,
    image_key: str,
    truth_key: str,
    shapes_key: str | None,
    coordinate_system: str | None,
    layer: str | None,
    um_per_unit: float,
) -> tuple[AnnData, float]:
    """Cells on the image, with counts in ``X`` and (x, y) pixels in ``obsm["spatial"]``; and µm per pixel."""
    table, um_per_px = sdata.tables[truth_key], um_per_unit
    if TableModel.ATTRS_KEY in table.uns:
        problems = Problems(f"cannot pair image {image_key!r} with truth {truth_key!r}")
        paired = pair(sdata, image_key, truth_key, shapes_key, coordinate_system, problems)
        problems.raise_if_any()
        assert paired is not None  # for types: `None` leaves a problem
        centroids = paired.shapes.geometry.iloc[paired.places].centroid
        rows, xy = paired.rows, transform(paired.spots_to_px, np.c_[centroids.x, centroids.y])
        um_per_px /= float(np.sqrt(abs(np.linalg.det(paired.spots_to_px[:2, :2]))))
    elif "spatial" in table.obsm:
        rows, xy = np.arange(table.n_obs), np.asarray(table.obsm["spatial"], float)[:, :2]
    else:
        raise MissingKeyError(
            f"`truth_key={truth_key!r}` needs positions: a region of shapes that the table annotates, or "
            f"`obsm['spatial']` in pixels of the image. Available: {list(table.obsm)}."
        )
    on = _on_image(sdata.images[image_key], xy)
    if on.mean() < 0.5:
        raise ValueError(
            f"`truth_key={truth_key!r}` needs positions on image {image_key!r}, but {(~on).sum():,} of {len(on):,} are "
            f"outside it. They may not be in its pixels, or be in another coordinate system. Annotate shapes that "
            f"share a coordinate system with the image, or pass `coordinate_system`."
        )
    if not on.all():
        logger.warning("tables/%s: %d of %d cells are outside the image and ignored", truth_key, (~on).sum(), len(on))
    matrix = matrix_of(table, truth_key, layer)
    counts = rows_as_csr(matrix.values, rows[on], np.arange(len(matrix.var)))
    var = matrix.var[[name for name in FEATURE_TYPES if name in matrix.var]]
    return AnnData(counts, obs=table.obs.iloc[rows[on]][[]], var=var, obsm={"spatial": xy[on]}), um_per_px


def _on_image(image: Any, xy: np.ndarray) -> np.ndarray:
    finest = levels(image)[0]
    on = (xy >= 0) & (xy <= (finest.sizes["x"], finest.sizes["y"]))
    return on[:, 0] & on[:, 1]


def _with_spots(
    sdata: SpatialData, image_key: str, truth_key: str, spots: AnnData, tissue_key: str | None
) -> SpatialData:
    """Section of the image and the pseudo-spots. Their table has the name of the truth, which errors then name."""
    made = SpatialData(images={image_key: sdata.images[image_key]})
    made.tables[truth_key] = made.tables.pop(add_spots(made, spots, like=image_key, key_added=f"{truth_key}_spots"))
    if tissue_key is not None:
        made[tissue_key] = sdata[tissue_key]
    return made
