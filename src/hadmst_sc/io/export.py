"""Write a result, or its cells, to files that other programs open."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import shapely
import tifffile
from anndata import AnnData
from geopandas import GeoDataFrame, GeoSeries, points_from_xy
from spatialdata import SpatialData
from spatialdata.models import get_table_keys

from hadmst_sc.io.contents import discard
from hadmst_sc.io.frame import Frame, warn_beside_image
from hadmst_sc.io.given import check_anndata, check_sdata
from hadmst_sc.io.lock import beside, home
from hadmst_sc.io.read import computed_here
from hadmst_sc.io.resolve import levels, transform
from hadmst_sc.io.result import columns_of, find_result
from hadmst_sc.io.tissue import outlines
from hadmst_sc.runtime import usual_errors
from hadmst_sc.section.errors import MissingKeyError, WrongTypeError
from hadmst_sc.section.observation import PROVENANCE_KEY

TILE = 256  # pixels along the side of a tile of a TIFF
BYTES_AT_ONCE = 2**27  # of values or pixels in memory


@computed_here()
@usual_errors
def export(
    sdata: SpatialData,
    path: str | Path,
    *,
    genes: Sequence[str] | None = None,
    key_added: str = "superres",
    cells: AnnData | None = None,
    overwrite: bool = False,
) -> None:
    """Write a result, or its cells, to a file for QuPath, napari, squidpy, R or a spreadsheet.

    The ending of the path is the format. Positions are in µm from the upper left corner of the H&E that the run read,
    x to the right and y down, even if ``sdata`` was cropped since. The file appears when it is complete.

    ========== ============================================================================================
    ending     content
    ========== ============================================================================================
    .ome.tif   the maps as an OME-TIFF, one channel per gene, NaN outside the tissue; its metadata have the
               size of a bin and the position on the H&E
    .h5ad      the table, with µm in ``obsm["spatial"]`` and the H&E in ``uns["spatial"]``; with ``cells``
               that table
    .csv.gz    one row per bin: ``x_um``, ``y_um``, ``measured`` and the genes; with ``cells`` one per cell:
               ``cell``, ``x_um``, ``y_um``, ``n_bins``, ``covered`` and the genes
    .geojson   the outlines of ``cells`` in pixels of the H&E, as detections of QuPath with measurements
    ========== ============================================================================================

    Parameters
    ----------
    sdata
        Holds the result. It is not changed.
    path
        The file to write.
    genes
        Names of genes; ``None`` = all.
    key_added
        Name of the result.
    cells
        A table from :func:`hadmst_sc.tl.to_cells`, to be written instead of the bins.
    overwrite
        True to replace an existing file.

    Raises
    ------
    KeyError
        If there is no such result or gene, the result has lost its labels or the record of its run, or the cells of the
        table are not in ``sdata``.
    TypeError
        If ``sdata``, ``path`` or ``cells`` is of another type.
    ValueError
        If the ending is unknown, or does not suit bins or cells, or the file exists.

    Examples
    --------
    On the section of the example of :func:`hadmst_sc.tl.superresolve`:

    >>> hd.io.export(sdata, "maps.ome.tif")
    >>> hd.io.export(sdata, "bins.csv.gz", genes=["visible_000"])
    """
    check_sdata(sdata)
    write = _writer(path, cells)
    if cells is not None and cells.isbacked:  # HDF5 reads genes in ascending order only
        cells = cells.to_memory()
    result = find_result(sdata, key_added)
    if cells is None:
        columns = columns_of(result.table.var_names, genes, f"tables/{result.table_key}")
    else:
        columns = columns_of(cells.var_names, genes, "`cells`")
    frame = Frame.of(result)
    warn_beside_image(result)
    with new_file(Path(path).expanduser(), overwrite=overwrite) as file:
        write(file, frame, columns, cells)


@contextmanager
def new_file(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give a path to write to; the file gets its name when the block ends, and is removed if the block fails.

    Raises
    ------
    ValueError
        As for :func:`check_new`.
    """
    check_new(path, overwrite=overwrite)
    target = home(path)
    partial = beside(target, f"{os.getpid()}.new")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        raise ValueError(
            f"`path` needs a folder in which files can be made, but {target.parent} is none: {error.strerror}. Pass a "
            f"path in another folder."
        ) from error
    try:
        yield partial
        os.replace(partial, target)
    finally:
        discard(partial)


def check_new(path: Path, *, overwrite: bool) -> None:
    """Refuse the path of a folder, and of a file that is not to be replaced."""
    if path.is_dir():
        raise ValueError(
            f"`path` needs the name of a file, but {path} is a folder. Pass `path={str(path / path.name)!r}`."
        )
    if path.exists() and not overwrite:
        raise ValueError(
            f"`path` needs to be free, but {path} exists. Pass `overwrite=True` (`--overwrite`) to replace it."
        )


Writer = Callable[[Path, Frame, np.ndarray, Any], None]


def _writer(path: object, cells: object) -> Writer:
    """Choose the function that writes a file, by the ending of its path."""
    if not isinstance(path, str | Path):
        raise WrongTypeError(f"`path` needs text or a Path, but is of type {type(path).__name__}. Pass 'maps.ome.tif'.")
    if cells is not None:
        check_anndata(cells, "cells")
    writers, name = OF_BINS if cells is None else OF_CELLS, Path(path).name.lower()
    for ending, write in writers.items():
        if name.endswith(ending):
            return write
    suffix, stem = Path(name).suffix, Path(path).name.partition(".")[0] or "maps"
    like = next((one for one in writers if suffix and suffix in one), next(iter(writers)))
    remedy = f"Pass `path={str(Path(path).parent / (stem + like))!r}`."
    if name.endswith(tuple(OF_BINS)):
        remedy = "Maps have no cells: leave out `cells`."
    elif name.endswith(tuple(OF_CELLS)):
        remedy = "Pass the table of the cells too: `cells=hadmst_sc.tl.to_cells(sdata, cells_key)`."
    raise ValueError(
        f"`path` needs one of the endings {list(writers)} of files of {'bins' if cells is None else 'cells'}, but is "
        f"{str(path)!r}. The ending is the format. {remedy}"
    )


def _write_tiff(file: Path, frame: Frame, columns: np.ndarray, _: None) -> None:
    """Write maps gene by gene; coarser levels are those of the image element."""
    result = frame.result
    channels = pd.Index([str(gene) for gene in result.image().coords["c"].values])
    names = [str(gene) for gene in result.table.var_names[columns]]
    columns_of(channels, names, f"images/{result.image_key}")
    pyramid = [level.data for level in levels(result.sdata.images[str(result.image_key)])]
    x, y = (float(at) for at in frame.corner * frame.bin_um)
    micrometres = ["µm"] * len(names)
    metadata = {
        "axes": "CYX",
        "Name": result.key,
        "Channel": {"Name": names},
        "PhysicalSizeX": frame.bin_um,
        "PhysicalSizeY": frame.bin_um,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeYUnit": "µm",
        "Plane": {
            "PositionX": [x] * len(names),
            "PositionY": [y] * len(names),
            "PositionXUnit": micrometres,
            "PositionYUnit": micrometres,
        },
        "MapAnnotation": {
            "Namespace": PROVENANCE_KEY,
            "unit": "expected counts per bin",
            "image_key": result.provenance["image_key"],
            "px_per_bin": frame.bin_um / frame.um_per_px,
            "x_px": x / frame.um_per_px,
            "y_px": y / frame.um_per_px,
        },
    }
    style: dict[str, Any] = {"dtype": np.float32, "tile": (TILE, TILE), "compression": "zlib"}
    style["photometric"] = "minisblack"
    with tifffile.TiffWriter(file, bigtiff=True, ome=True) as tiff:
        for level, maps in enumerate(pyramid):
            more = {"subfiletype": 1} if level else {"subifds": len(pyramid) - 1, "metadata": metadata}
            tiles = _tiles(maps, channels.get_indexer(names))
            tiff.write(tiles, shape=(len(names), *maps.shape[1:]), **style, **more)


def _tiles(maps: Any, genes: np.ndarray) -> Iterator[np.ndarray]:
    for gene in genes:
        one = np.asarray(maps[int(gene)], np.float32)
        for y in range(0, one.shape[0], TILE):
            for x in range(0, one.shape[1], TILE):
                yield one[y : y + TILE, x : x + TILE]


def _write_bins_h5ad(file: Path, frame: Frame, columns: np.ndarray, _: None) -> None:
    result = frame.result
    table = result.table[result.places[0], columns].copy()
    table.X = result.maps_at_bins(columns)
    table.uns.pop("log1p", None)  # of a table that was transformed after the run; scanpy would refuse to do it again
    table.obsm["spatial"], table.uns["spatial"] = frame.xy_um(), frame.library()
    table.write_h5ad(file)


def _write_cells_h5ad(file: Path, frame: Frame, columns: np.ndarray, cells: AnnData) -> None:
    table = cells[:, columns].copy()
    table.obsm["spatial"], table.uns["spatial"] = _centres(frame, cells), frame.library()
    table.write_h5ad(file)


def _write_bins_csv(file: Path, frame: Frame, columns: np.ndarray, _: None) -> None:
    result = frame.result
    first = pd.DataFrame(frame.xy_um(), columns=["x_um", "y_um"])
    first = first.join(_beside(result.table[result.places[0]]))
    _write_csv(file, first, result.maps_at_bins(columns), result.table.var_names[columns])


def _write_cells_csv(file: Path, frame: Frame, columns: np.ndarray, cells: AnnData) -> None:
    first = pd.DataFrame({"cell": cells.obs_names})
    first[["x_um", "y_um"]] = _centres(frame, cells)
    first = first.join(_beside(cells))
    _write_csv(file, first, cells.X[:, columns], cells.var_names[columns])


def _write_csv(file: Path, first: pd.DataFrame, values: Any, names: pd.Index) -> None:
    with gzip.open(file, "wt", encoding="utf-8", newline="") as text:
        for start, block in _blocks(values):
            part = pd.DataFrame(block, columns=names)
            before = first.iloc[start : start + len(block)].reset_index(drop=True)
            pd.concat([before, part], axis=1).to_csv(text, index=False, header=start == 0, lineterminator="\n")


def _blocks(values: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Yield rows, a limited number at a time, with the number of the first."""
    n_rows = max(1, BYTES_AT_ONCE // (4 * max(1, values.shape[1])))
    for start in range(0, max(1, values.shape[0]), n_rows):
        block = values[start : start + n_rows]
        block = block.compute() if isinstance(block, da.Array) else block
        yield start, np.asarray(block.toarray() if hasattr(block, "toarray") else block)


def _write_geojson(file: Path, frame: Frame, columns: np.ndarray, cells: AnnData) -> None:
    shapes = shapely.to_geojson(_shapes(frame, cells).to_numpy())
    others = _beside(cells)
    names = [*others.columns, *cells.var_names[columns]]
    with file.open("w", encoding="utf-8") as text:
        text.write('{"type": "FeatureCollection", "features": [')
        for start, block in _blocks(cells.X[:, columns]):
            known = others.to_numpy()[start : start + len(block)]
            for i, (own, values) in enumerate(zip(known, block, strict=True), start):
                # The shortest decimals that are the same float32; JSON has no NaN.
                numbers = [*map(float, own), *(float(str(value)) for value in values)]
                found = {name: one for name, one in zip(names, numbers, strict=True) if np.isfinite(one)}
                properties = {"objectType": "detection", "name": str(cells.obs_names[i]), "measurements": found}
                text.write(
                    f"{',' if i else ''}\n"
                    f'{{"type": "Feature", "geometry": {shapes[i] or "null"}, "properties": {json.dumps(properties)}}}'
                )
        text.write("\n]}\n")


def _beside(table: AnnData) -> pd.DataFrame:
    """Return the columns of ``obs`` that say where the counts of bins or cells come from."""
    known = ("n_bins", "covered") if "n_bins" in table.obs else ("measured",)
    return table.obs[[name for name in known if name in table.obs]].reset_index(drop=True)


def _centres(frame: Frame, cells: AnnData) -> np.ndarray:
    """Centres of cells in µm."""
    if "spatial" not in cells.obsm:
        raise MissingKeyError(
            "`cells` needs the centres of its cells in `obsm['spatial']`, but has none. Pass the table that "
            "`hadmst_sc.tl.to_cells` returns."
        )
    return transform(frame.to_um(), np.asarray(cells.obsm["spatial"])[:, :2])


def _shapes(frame: Frame, cells: AnnData) -> GeoSeries:
    """Outlines of cells in pixels of the H&E, in the order of the table."""
    sdata, call = frame.result.sdata, "Pass the table that `hadmst_sc.tl.to_cells` returns, and the same `sdata`."
    try:
        regions, _, instance_key = get_table_keys(cells)
        ids = cells.obs[instance_key]
    except (KeyError, ValueError) as error:
        raise MissingKeyError(f"`cells` needs to annotate cells of `sdata`, but annotates nothing. {call}") from error
    region, *others = [regions] if isinstance(regions, str) else regions  # a list after a crop
    if others or region not in sdata:
        raise MissingKeyError(f"`cells` annotates {regions!r}, but `sdata` has no such element. {call}")
    element = sdata[region]
    if region in sdata.labels:
        shapes = _traced(levels(element)[0])
    elif region in sdata.points:
        points = element[["x", "y"]].compute()
        shapes = GeoSeries(points_from_xy(points["x"], points["y"]), index=points.index)
    else:
        shapes = outlines(element)
    if unknown := ids[~ids.isin(shapes.index)].tolist():
        raise MissingKeyError(f"`cells` has cells that {region!r} has not: {unknown[:5]}. {call}")
    to_px = frame.to_um(element, region) / frame.um_per_px
    return shapes.loc[ids].affine_transform([*to_px[:2, :2].ravel(), *to_px[:2, 2]])


def _traced(labels: Any) -> GeoSeries:
    """Outlines of labels along the edges of their pixels, by id."""
    n_rows, found = max(1, BYTES_AT_ONCE // (8 * labels.shape[1])), []
    for start in range(0, labels.shape[0], n_rows):
        values = np.asarray(labels.data[start : start + n_rows])
        edges = np.ones((len(values), values.shape[1] + 1), bool)
        edges[:, 1:-1] = values[:, 1:] != values[:, :-1]
        y, x = np.nonzero(edges)
        runs = np.flatnonzero(x[:-1] < values.shape[1])  # each ends where the next one starts
        ids = values[y[runs], x[runs]]
        runs, ids = runs[ids > 0], ids[ids > 0]
        boxes = shapely.box(x[runs], y[runs] + start, x[runs + 1], y[runs] + start + 1)
        found.append(GeoDataFrame({"id": ids}, geometry=boxes))
    return pd.concat(found).dissolve("id").geometry


OF_BINS: dict[str, Writer] = {
    ".ome.tif": _write_tiff,
    ".ome.tiff": _write_tiff,
    ".h5ad": _write_bins_h5ad,
    ".csv.gz": _write_bins_csv,
}
OF_CELLS: dict[str, Writer] = {
    ".geojson": _write_geojson,
    ".h5ad": _write_cells_h5ad,
    ".csv.gz": _write_cells_csv,
}
