"""Make SpatialData elements from arrays: those of a result, and images and circles of a Visium section."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData
from spatialdata import SpatialData, sanitize_name
from spatialdata.models import Image2DModel, Labels2DModel, ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale, Sequence

from hadmst_sc.io.counts import matrix_of
from hadmst_sc.io.resample import thumbnail
from hadmst_sc.io.resolve import XY, affine, systems
from hadmst_sc.section.errors import logger
from hadmst_sc.section.observation import PROVENANCE_KEY, OutputNames, Prediction, Source

CHUNKS = (1, 1024, 1024)  # one gene is read in 0.08 s; with all genes in one chunk it takes 9.6 s
PYRAMID_FROM = 2048  # bins along a side


def pyramid_steps(shape: tuple[int, int]) -> int:
    """Return the number of pyramid levels below the finest, which viewers need for large grids."""
    return int(np.ceil(np.log2(max(shape) / PYRAMID_FROM))) if max(shape) > PYRAMID_FROM else 0


def raster_elements(
    sdata: SpatialData, prediction: Prediction, source: Source, names: OutputNames, *, hollow: bool = False
) -> dict[str, Any]:
    """Return the image, its standard deviation if there is one, and the labels of the bins in tissue, by name.

    ``hollow`` images have a single pixel: their arrays are already on disk and replace it once the images are written.
    """
    (ny, nx), steps = prediction.grid.shape, pyramid_steps(prediction.grid.shape)
    maps = {name: one for name, one in ((names.image, prediction.mean), (names.std, prediction.std)) if one is not None}
    found: dict[str, Any] = {
        name: Image2DModel.parse(
            np.zeros((len(values), 1, 1), np.float32) if hollow else _nan_outside(values, prediction.inside),
            dims=("c", "y", "x"),
            c_coords=list(prediction.genes),
            transformations=_transformations(sdata, prediction, source),
            chunks=None if hollow else CHUNKS,
            scale_factors=[2] * steps or None,
        )
        for name, values in maps.items()
    }
    ids = np.arange(1, ny * nx + 1, dtype=np.uint32).reshape(ny, nx)
    found[names.bins] = Labels2DModel.parse(
        np.where(prediction.inside, ids, np.uint32(0)),
        dims=("y", "x"),
        transformations=_transformations(sdata, prediction, source),
    )
    return found


def _nan_outside(maps: Any, inside: np.ndarray) -> Any:
    """Set maps to NaN outside tissue: viewers show 0 as "not expressed" and draw nothing for NaN (ADR 0016)."""
    if isinstance(maps, da.Array):
        return da.where(inside, maps, np.float32(np.nan))
    return np.where(inside, maps, np.float32(np.nan)).astype(np.float32, copy=False)


def _transformations(sdata: SpatialData, prediction: Prediction, source: Source) -> dict[str, Any]:
    """Return transformations from bins to each coordinate system of the input image, through its pixels."""
    factor = prediction.grid.px_per_bin
    image = sdata.images[source.image_key]
    return {name: Sequence([Scale([factor, factor], axes=XY), to]) for name, to in systems(image).items()}


def bins_table(sdata: SpatialData, prediction: Prediction, source: Source, names: OutputNames) -> AnnData:
    """Return the table that annotates the labels, one row per bin in tissue."""
    row, col = np.nonzero(prediction.inside)
    obs = pd.DataFrame(
        {
            "region": pd.Categorical.from_codes(np.zeros(len(row), np.int8), [names.bins]),
            "bin_id": row.astype(np.int64) * prediction.grid.shape[1] + col + 1,
            "array_row": row.astype(np.int32),
            "array_col": col.astype(np.int32),
            "covered": np.asarray(prediction.covered[row, col], np.float32),
            "measured": prediction.measured[row, col],
        },
        index=[f"{source.shapes_key}_{r:05d}_{c:05d}" for r, c in zip(row, col, strict=True)],
    )
    table = AnnData(at_bins(prediction.mean, row, col), obs=obs, var=_var(sdata, prediction, source))
    if prediction.std is not None:
        table.layers["std"] = at_bins(prediction.std, row, col)
    image = sdata.images[source.image_key]
    to_system = affine(image, source.coordinate_system) @ np.diag([prediction.grid.px_per_bin] * 2 + [1.0])
    table.obsm["spatial"] = np.c_[col + 0.5, row + 0.5] @ to_system[:2, :2].T + to_system[:2, 2]
    table.uns["spatial"] = {source.shapes_key: _library(image, source, to_system)}
    table.uns[PROVENANCE_KEY] = plain({"key_added": names.image} | prediction.provenance)
    return TableModel.parse(table, region=names.bins, region_key="region", instance_key="bin_id")


def at_bins(maps: Any, row: np.ndarray, col: np.ndarray) -> Any:
    """Return values of ``(genes, ny, nx)`` maps at some bins, ``(bins, genes)`` float32; lazy if the maps are."""
    if isinstance(maps, da.Array):
        each = maps.rechunk((1, *maps.shape[1:]))
        by_gene = (each.chunks[0], (len(row),))  # map_blocks cannot transpose
        columns = each.map_blocks(_columns, row, col, dtype=np.float32, drop_axis=2, chunks=by_gene)
        return columns.rechunk((_genes_of_a_chunk(len(row), len(maps)), -1)).T
    values = np.empty((len(row), len(maps)), np.float32)
    for g, one in enumerate(maps):  # one gene at a time: an advanced index over all would copy the whole cube
        values[:, g] = one[row, col]
    return values


def _genes_of_a_chunk(n_bins: int, n_genes: int) -> int:
    """Return the chunk size anndata will use: a chunk written in parts is read and compressed again for each part."""
    return int(zarr.create_array({}, shape=(n_bins, n_genes), dtype="float32").chunks[1])


def _columns(maps: np.ndarray, row: np.ndarray, col: np.ndarray) -> np.ndarray:
    return np.asarray(at_bins(maps, row, col)).T


def _var(sdata: SpatialData, prediction: Prediction, source: Source) -> pd.DataFrame:
    matrix = matrix_of(sdata.tables[source.table_key], source.table_key, source.layer)
    var = matrix.var.loc[list(prediction.genes), ~matrix.var.columns.duplicated()].copy()  # anndata writes each once
    for column in var:
        if isinstance(var[column].dtype, pd.StringDtype):  # anndata does not write nullable strings by default
            var[column] = var[column].astype(object).where(var[column].notna(), "")
        elif var[column].dtype.kind in "mM":  # nor dates and durations
            var[column] = var[column].astype(str)
    for name in prediction.gene_stats:
        if name in var:  # a column of the user, or of another run
            var = var.rename(columns={name: _free(f"{name}_input", var)})
    for name, values in prediction.gene_stats.items():
        var[name] = np.asarray(values)
    return _writable(var)


def _writable(var: pd.DataFrame) -> pd.DataFrame:
    """Rename columns that a store cannot hold, such as ``Gene name`` to ``Gene_name``."""
    names: dict[Any, str] = {}
    for column in var:
        name = sanitize_name(str(column), is_dataframe_column=True)
        names[column] = name if name == column else _free(name, {*map(str, var.columns), *names.values()})
    renamed = {old: new for old, new in names.items() if old != new}
    if renamed:
        logger.warning("columns of `var` are renamed in the result, as stores do not allow their names: %s", renamed)
    var = var.rename(columns=renamed)
    if var.index.name in var:  # anndata cannot write an index with the name of a column
        var.index.name = None
    return var


def _free(name: str, columns: Container[str]) -> str:
    while name in columns:
        name += "_"
    return name


def _library(image: Any, source: Source, to_system: np.ndarray) -> dict[str, Any]:
    """Return the ``uns`` entry that squidpy and scanpy plot from: bin edge, scale factor and image."""
    edge = float(np.sqrt(abs(np.linalg.det(to_system[:2, :2]))))
    hires, scale = thumbnail(image, source.image_key, affine(image, source.coordinate_system))
    factors = {"spot_diameter_fullres": edge, "tissue_hires_scalef": scale}
    return {"images": {"hires": hires}, "scalefactors": factors, "metadata": {}}


def plain(value: Any) -> Any:
    """Convert provenance to types that zarr, h5ad and JSON all keep: nested dicts of str, numbers, bool and flat lists.

    ``None`` and non-finite numbers become their names, tuples and arrays become lists, and anything else (nested lists,
    lists of dicts or of several types, keys that are not path components) becomes a JSON string.
    """
    if isinstance(value, dict):
        if all(isinstance(key, str) and key not in ("", ".", "..") and "/" not in key for key in value):
            return {key: plain(one) for key, one in value.items()}
        return json.dumps({str(key): plain(one) for key, one in value.items()})
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, list | tuple | set):
        items = [plain(one) for one in value]
        kinds = {type(one) for one in items}
        if kinds == {int, float}:
            return [float(one) for one in items]
        return items if len(kinds) == 1 and kinds <= {str, bool, int, float} else json.dumps(items)
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return str(value).lower()
    return value if isinstance(value, str | bool | int | float) else str(value)


AXES = ("y", "x")
COLOURS = {3: ["r", "g", "b"], 4: ["r", "g", "b", "a"]}
HALVINGS = 4  # largest number of pyramid levels below the full image
SMALLEST = 16  # fewest pixels along the shorter side of a level


def visium_images(name: str, pictures: Mapping[str, tuple[Any, float]]) -> dict[str, Any]:
    """Make images ``<name>_<kind>_image`` in the coordinate system ``name``; smaller copies also in their pixels' own.

    Parameters
    ----------
    pictures
        By kind ("full", "hires", "lowres"): ``(c, y, x)`` pixels, and their number along one pixel of the full image.
    """
    found = {}
    for kind, (pixels, scale) in pictures.items():
        systems: dict[str, Any] = {name: _scale(1 / scale)}
        levels = 0
        if kind == "full":
            levels = min(HALVINGS, max(0, int(np.log2(min(pixels.shape[1:]) / SMALLEST))))
        else:
            systems = {f"{name}_downscaled_{kind}": Identity(), **systems}
        found[f"{name}_{kind}_image"] = Image2DModel.parse(
            pixels,
            dims=("c", *AXES),
            c_coords=COLOURS.get(pixels.shape[0]),
            scale_factors=[2] * levels or None,
            transformations=systems,
        )
    return found


def visium_circles(name: str, xy: np.ndarray, ids: Any, diameter: float, scales: Mapping[str, float]) -> Any:
    """Make circles in pixels of the full image, with the coordinate systems of all its smaller copies.

    Parameters
    ----------
    scales
        Scale factors by kind, as in :func:`visium_images`.
    """
    systems = {f"{name}_downscaled_{kind}": _scale(scale) for kind, scale in scales.items() if kind != "full"}
    return ShapesModel.parse(
        np.asarray(xy, float), geometry=0, radius=diameter / 2, index=ids, transformations={name: Identity(), **systems}
    )


def _scale(factor: float) -> Any:
    return Identity() if factor == 1 else Scale([factor, factor], axes=AXES)
