"""Convert an AnnData from scanpy's and squidpy's Visium readers to SpatialData."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from anndata import AnnData
from spatialdata import SpatialData, sanitize_table
from spatialdata.models import TableModel

from hadmst_sc.io.elements import visium_circles, visium_images
from hadmst_sc.io.given import check_anndata
from hadmst_sc.io.lattice import lattice
from hadmst_sc.io.pixels import channels_first, read_pixels
from hadmst_sc.io.values import column
from hadmst_sc.section.errors import Problems, logger

ROW, COLUMN = "pxl_row_in_fullres", "pxl_col_in_fullres"  # columns of Space Ranger's spot positions


class _Picture(NamedTuple):
    """Pixels ``(c, y, x)``, and their number along one pixel of the full-resolution image."""

    pixels: Any
    scale: float


@dataclass(frozen=True, eq=False)
class _Library:
    """One section: its rows, centres (x, y) and diameter of its spots in full-resolution pixels, and images by kind."""

    rows: np.ndarray
    xy: np.ndarray
    diameter: float
    pictures: dict[str, _Picture]


def from_anndata(
    adata: AnnData,
    image: Any = None,
    *,
    library_id: str | None = None,
    library_key: str | None = None,
    spatial_key: str = "spatial",
    spot_diameter_px: float | None = None,
    image_scale: float = 1.0,
) -> SpatialData:
    """Convert an AnnData from ``scanpy.read_visium`` or ``squidpy.read.visium`` to SpatialData.

    Parameters
    ----------
    adata
        Counts, spots × genes, with the centres of the spots as (x, y) in pixels of the full-resolution image in
        ``obsm[spatial_key]``; images and scale factors are read from ``uns["spatial"][library]``. It is not changed,
        and may come from any other source. Names that repeat are numbered in the result.
    image
        The full-resolution H&E: an array ``(y, x)``, ``(y, x, c)`` or ``(c, y, x)``, numpy or dask, or the path of a
        TIFF, PNG or JPEG file. For several libraries, a dictionary by library. ``None`` uses the images of ``uns``.
    library_id
        The library to use if ``uns["spatial"]`` has several; the name of the section if it has none.
    library_key
        Column of ``obs`` that names the library of each spot. All its libraries are used, or only ``library_id``.
    spatial_key
        Key of the centres in ``obsm``.
    spot_diameter_px
        Diameter of the spots in pixels of the full-resolution image; ``None`` =
        ``scalefactors["spot_diameter_fullres"]``.
    image_scale
        Pixels of ``image`` per pixel of the full-resolution image, if ``image`` is a smaller copy of it.

    Returns
    -------
    SpatialData with the names that ``spatialdata_io.visium`` gives: images ``<library>_full_image`` (``image``),
    ``<library>_hires_image`` and ``<library>_lowres_image``, circles ``<library>``, and ``table``.

    Raises
    ------
    TypeError
        If ``adata`` is not an AnnData.
    ContractError
        With all problems, each with its place and remedy.

    Examples
    --------
    >>> adata = hd.datasets.phantom(n_genes=4, size_um=600.0).tables["table"]
    >>> he = np.full((240, 240, 3), 200, np.uint8)
    >>> sdata = hd.io.from_anndata(adata, he, spot_diameter_px=22.0)
    >>> list(sdata.images), list(sdata.shapes), list(sdata.tables)
    (['phantom_full_image'], ['phantom'], ['table'])
    """
    check_anndata(adata, "adata")
    problems = Problems("cannot make a SpatialData of `adata`")
    xy = _positions(adata, spatial_key, problems)
    rows = _rows_of_libraries(adata, library_id, library_key, problems)
    images = _images_by_library(image, rows, problems)
    libraries = {}
    for name, own in rows.items():
        if xy is None:
            break
        entry = _entry(adata, name)
        diameter = _diameter(xy[own], entry, name, spot_diameter_px, problems)
        pictures = _pictures(entry, name, images.get(name), image_scale, problems)
        _check_place(xy[own], pictures, entry, name, spatial_key, problems)
        libraries[name] = _Library(own, xy[own], diameter, pictures)
    problems.raise_if_any()
    return _assembled(adata, libraries)


def _positions(adata: AnnData, key: str, problems: Problems) -> np.ndarray | None:
    """Return the centres ``(spots, 2)`` as (x, y); ``None`` after a problem."""
    if key not in adata.obsm:
        remedy = ""
        if ROW in adata.obs and COLUMN in adata.obs:
            remedy = f" Set `adata.obsm[{key!r}] = adata.obs[[{COLUMN!r}, {ROW!r}]].to_numpy()`."
        elif alike := [name for name in adata.obsm if "spatial" in name.lower()]:
            remedy = f" Pass `spatial_key={alike[0]!r}`."
        problems.add(f"`spatial_key={key!r}` is not in `adata.obsm`. Available: {list(adata.obsm)}.{remedy}")
        return None
    values = np.asarray(adata.obsm[key])
    try:
        xy = values.astype(float)
    except (TypeError, ValueError):
        problems.add(f"`adata.obsm[{key!r}]` needs numbers, but has {values.ravel()[0]!r}.")
        return None
    if xy.ndim != 2 or xy.shape[1] != 2 or not len(xy):
        problems.add(
            f"`adata.obsm[{key!r}]` needs (x, y) of at least one spot, but has the shape {xy.shape}."
            + (f" Set `adata.obsm[{key!r}] = adata.obsm[{key!r}][:, :2]`." if xy.ndim == 2 and xy.shape[1] > 2 else "")
        )
        return None
    lost = ~np.isfinite(xy).all(1)
    if lost.any():
        problems.add(
            f"`adata.obsm[{key!r}]` needs finite positions, but {lost.sum():,} of {len(xy):,} spots have none, such as "
            f"{adata.obs_names[lost][0]!r}. Remove them: "
            f"`adata = adata[numpy.isfinite(adata.obsm[{key!r}].astype(float)).all(1)].copy()`."
        )
        return None
    return xy


def _stored(adata: AnnData) -> dict[str, Any]:
    stored = adata.uns.get("spatial")
    found = stored.items() if isinstance(stored, Mapping) else ()
    return {str(name): one for name, one in found if isinstance(one, Mapping)}


def _entry(adata: AnnData, name: str) -> dict[str, Any]:
    return dict(_stored(adata).get(name, {}))


def _rows_of_libraries(
    adata: AnnData, library_id: str | None, library_key: str | None, problems: Problems
) -> dict[str, np.ndarray]:
    stored, every = list(_stored(adata)), np.arange(adata.n_obs)
    if library_key is not None:
        if library_key not in adata.obs:
            problems.add(f"`library_key={library_key!r}` is not in `adata.obs`. Available: {list(adata.obs)}.")
            return {}
        library_of = column(adata.obs, library_key).astype(str).to_numpy()
        names = list(dict.fromkeys(library_of))
        if library_id is not None and library_id not in names:
            problems.add(f"`library_id={library_id!r}` is not in `adata.obs[{library_key!r}]`. Available: {names}.")
            return {}
        names = names if library_id is None else [library_id]
        return {name: np.flatnonzero(library_of == name) for name in names}
    if library_id is not None:
        if stored and library_id not in stored:
            problems.add(f"`library_id={library_id!r}` is not in `adata.uns['spatial']`. Available: {stored}.")
            return {}
        return {library_id: every}
    if len(stored) > 1:
        columns = [name for name in adata.obs if set(column(adata.obs, name).astype(str)) <= set(stored)]
        remedy = f"library_key={columns[0]!r}" if columns else f"library_id={stored[0]!r}"
        problems.add(
            f"`adata.uns['spatial']` has {len(stored)} libraries, {stored}, and the library of each spot is not known. "
            f"Pass `{remedy}`."
        )
        return {}
    return {stored[0] if stored else "section": every}


def _images_by_library(image: Any, rows: dict[str, np.ndarray], problems: Problems) -> dict[str, Any]:
    if isinstance(image, Mapping):
        if unknown := [name for name in image if name not in rows]:
            problems.add(f"`image` has {unknown}, which are not among the libraries {list(rows)}.")
        return dict(image)
    if image is not None and len(rows) > 1:
        first = next(iter(rows))
        problems.add(
            f"`image` needs an image for each of the libraries {list(rows)}, but is a single one. Pass a dictionary by "
            f"library, or `library_id={first!r}`."
        )
        return {}
    return {name: image for name in rows if image is not None}


def _number(values: Any, key: str) -> float | None:
    """Return the positive number under a key, in the form that JSON, h5ad or zarr keep it; otherwise ``None``."""
    value = values.get(key) if isinstance(values, Mapping) else None
    try:
        number = float(np.asarray(value, float).item())
    except (TypeError, ValueError):
        return None
    return number if 0 < number < np.inf else None


def _diameter(xy: np.ndarray, entry: dict[str, Any], name: str, given: float | None, problems: Problems) -> float:
    found = _number(entry.get("scalefactors"), "spot_diameter_fullres") if given is None else _number({"": given}, "")
    if found is not None:
        return found
    if given is not None:
        problems.add(f"`spot_diameter_px` needs a positive number of pixels, but is {given!r}.")
        return 1.0
    pitch, kind, *_ = lattice(xy)
    share, platform = (0.5, "Spatial Transcriptomics") if kind == "square" else (0.55, "Visium")
    remedy = f" Pass `spot_diameter_px={share * pitch:.4g}` if this is {platform}." if np.isfinite(pitch) else ""
    problems.add(
        f"`spot_diameter_px` is needed: `adata.uns['spatial'][{name!r}]['scalefactors']` has no "
        f"'spot_diameter_fullres'.{remedy}"
    )
    return 1.0


def _pictures(
    entry: dict[str, Any], name: str, image: Any, image_scale: float, problems: Problems
) -> dict[str, _Picture]:
    """Return images by kind: "full", "hires", "lowres"."""
    found: dict[str, _Picture] = {}
    if image is not None:
        if (scale := _number({"": image_scale}, "")) is None:
            problems.add(f"`image_scale` needs a positive number, but is {image_scale!r}. Pass `image_scale=1.0`.")
        try:
            pixels = read_pixels(Path(image)) if isinstance(image, str | Path) else image
            found["full"] = _Picture(channels_first(pixels), scale or 1.0)
        except (ValueError, OSError) as error:
            subject = "it " if str(error).startswith("has ") else ""
            problems.add(f"`image` needs the H&E as an array or a file, but {subject}{error}.")
    stored = entry.get("images")
    for kind, pixels in stored.items() if isinstance(stored, Mapping) else ():
        scale = _number(entry.get("scalefactors"), f"tissue_{kind}_scalef")
        if scale is None or kind not in ("hires", "lowres"):
            continue
        try:
            found[kind] = _Picture(channels_first(pixels), scale)
        except ValueError as error:
            problems.add(f"`adata.uns['spatial'][{name!r}]['images'][{kind!r}]` {error}.")
    if not found and image is None:
        metadata = entry.get("metadata")
        known = str(metadata.get("source_image_path")) if isinstance(metadata, Mapping) else ""
        path = known if Path(known).is_file() else "he.tif"
        problems.add(
            f"`image` is needed: `adata.uns['spatial'][{name!r}]` has no image with its scale factor. Pass "
            f"`image={path!r}`, the file of the full-resolution H&E, or an array."
        )
    return found


def _check_place(
    xy: np.ndarray, pictures: dict[str, _Picture], entry: dict[str, Any], name: str, key: str, problems: Problems
) -> None:
    """Add a problem if most spots are outside an image, as happens when a smaller copy is passed as full resolution."""
    for kind, picture in pictures.items():
        if (on := _share_on(xy, picture)) >= 0.5:
            continue
        scales = [_number(entry.get("scalefactors"), f"tissue_{other}_scalef") for other in ("hires", "lowres")]
        fitting = [s for s in scales if s and kind == "full" and _share_on(xy, _Picture(picture.pixels, s)) == 1]
        remedy = f" Pass `image_scale={fitting[0]!r}` if it is a smaller copy." if fitting else ""
        if not fitting and _share_on(xy[:, ::-1], picture) == 1:
            remedy = f" They seem to be (y, x): set `adata.obsm[{key!r}] = adata.obsm[{key!r}][:, ::-1]`."
        height, width = picture.pixels.shape[1:]
        problems.add(
            f"library {name!r}: spots need to be on the {kind} image of {width} x {height} pixels, but "
            f"{1 - on:.0%} are outside it (they span x {xy[:, 0].min():.0f} to {xy[:, 0].max():.0f}, y "
            f"{xy[:, 1].min():.0f} to {xy[:, 1].max():.0f} in pixels of the full-resolution image).{remedy}"
        )


def _share_on(xy: np.ndarray, picture: _Picture) -> float:
    height, width = picture.pixels.shape[1:]
    at = xy * picture.scale
    return float(((at >= 0) & (at <= (width, height))).all(1).mean())


def _assembled(adata: AnnData, libraries: dict[str, _Library]) -> SpatialData:
    names = _element_names(list(libraries))
    library_of, ids = np.empty(adata.n_obs, object), np.empty(adata.n_obs, int)
    for library, one in libraries.items():
        library_of[one.rows] = names[library]
    rows = np.flatnonzero(library_of.astype(bool))
    ids[rows] = np.arange(len(rows))
    part = adata if len(rows) == adata.n_obs else adata[rows]
    table = part.to_memory() if adata.isbacked else part.copy()
    sanitize_table(table)  # SpatialData allows fewer column names than AnnData: no "Gene name"
    _make_names_unique(table)
    region_key, instance_key = _free_columns(table)
    table.obs[region_key], table.obs[instance_key] = pd.Categorical(library_of[rows]), ids[rows]
    table.uns["spatial"] = {names[library]: _entry(table, library) for library in libraries}
    table.uns.pop(TableModel.ATTRS_KEY, None)
    images: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for library, one in libraries.items():
        name, scales = names[library], {kind: scale for kind, (_, scale) in one.pictures.items()}
        images |= visium_images(name, one.pictures)
        shapes[name] = visium_circles(name, one.xy, ids[one.rows], one.diameter, scales)
    region = list(shapes) if len(shapes) > 1 else next(iter(shapes))
    parsed = TableModel.parse(table, region=region, region_key=region_key, instance_key=instance_key)
    return SpatialData(images=images, shapes=shapes, tables={"table": parsed})


def _element_names(libraries: list[str]) -> dict[str, str]:
    """Return unique names that SpatialData accepts: letters, digits, dots, hyphens and underscores."""
    names: dict[str, str] = {}
    for library in libraries:
        name = re.sub(r"[^\w.-]", "_", library).lstrip("_.") or "section"
        while name in names.values():
            name += "_"
        if name != library:
            logger.warning("library %r is renamed %r, as SpatialData does not accept its name", library, name)
        names[library] = name
    return names


def _make_names_unique(table: AnnData) -> None:
    """Number repeated names, as ``spatialdata_io.visium`` does: Space Ranger's gene symbols repeat."""
    for what, names, rename in (
        ("gene", table.var_names, table.var_names_make_unique),
        ("spot", table.obs_names, table.obs_names_make_unique),
    ):
        if not names.is_unique:
            twice = names[names.duplicated()].unique()
            logger.warning(
                "%s names repeat (%d, such as %r): '-1', '-2', ... is added to all but the first",
                what,
                len(twice),
                twice[0],
            )
            rename()


def _free_columns(table: AnnData) -> tuple[str, str]:
    """Return names for the region and spot columns that overwrite no column of the user."""
    own = table.uns.get(TableModel.ATTRS_KEY, {})
    replaced = {own.get(TableModel.REGION_KEY_KEY), own.get(TableModel.INSTANCE_KEY)}
    names = []
    for name in ("region", "spot_id"):
        while name in table.obs and name not in replaced:
            name = f"{name}_"
        names.append(name)
    return names[0], names[1]
