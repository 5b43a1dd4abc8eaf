"""SpatialData to arrays: the only place where elements are looked at, and the only resampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from spatialdata import SpatialData

from hadmst_sc.contract import Observation, Source
from hadmst_sc.grid import Grid
from hadmst_sc.io.counts import select_counts, total_counts
from hadmst_sc.io.doubt import warn_of_doubts
from hadmst_sc.io.given import check_sdata
from hadmst_sc.io.problems import Problems, logger
from hadmst_sc.io.resample import check_image, resample_he
from hadmst_sc.io.resolve import Paired, levels, pair
from hadmst_sc.io.spots import Scale, footprints, scale, stated_sizes
from hadmst_sc.io.tissue import detect_tissue, read_mask
from hadmst_sc.measurement import Measurement, discs, squares


def read_observation(
    sdata: SpatialData,
    image_key: str,
    *,
    table_key: str = "table",
    shapes_key: str | None = None,
    coordinate_system: str | None = None,
    layer: str | None = None,
    genes: Sequence[str] | int | None = None,
    bin_um: float = 10.0,
    spot_um: float | None = None,
    pitch_um: float | None = None,
    tissue_key: str | None = None,
) -> Observation:
    """Read one section; ``sdata`` is only looked at.

    Parameters
    ----------
    sdata
        Holds the H&E, the spots and their table.
    image_key
        RGB or RGBA image, plain or a pyramid, uint8, uint16 or floating point.
    table_key
        Table of counts that annotates circles or squares.
    shapes_key
        Region of the table; needed only when several share a coordinate system with the image.
    coordinate_system
        Where image and spots meet; needed only when that is ambiguous.
    layer
        Layer with the counts; ``None`` = ``X``, ``"raw"`` = the matrix of ``.raw`` unless a layer has that name.
    genes
        Names; a number for the most informative (see :func:`~hadmst_sc.io.counts.most_informative`); ``None`` for
        ``var["highly_variable"]`` where that is set, else the 200 most informative.
    bin_um
        Edge of a bin, µm.
    spot_um, pitch_um
        Diameter (or edge) and distance of the spots, µm. Where both are ``None`` the table states them in
        ``uns["spatial"][<shapes>]["metadata"]``, as ``datasets.load`` leaves them, or the ratio of drawn diameter to
        pitch names the platform: 0.55 or 0.65 is Visium (55 and 100 µm), 0.50 Spatial Transcriptomics (100 and 200 µm).
    tissue_key
        Labels or shapes that mark tissue; ``None`` detects it from the H&E and the spots.

    Raises
    ------
    TypeError
        If ``sdata`` is no SpatialData; the message says how to make one.
    KeyError
        If the only problem is a key that is not there.
    ContractError
        With all problems, each with its place and remedy.

    Examples
    --------
    >>> sdata = hd.datasets.phantom(n_genes=4, size_um=600.0)
    >>> obs = hd.io.read_observation(sdata, "phantom_full_image", bin_um=20.0)
    >>> obs.grid.shape, obs.counts.shape[1], obs.source.pitch_um
    ((30, 30), 4, 100.0)
    """
    check_sdata(sdata)
    problems = Problems(f"cannot pair image {image_key!r} with table {table_key!r}")
    for name, value in (("bin_um", bin_um), ("spot_um", spot_um), ("pitch_um", pitch_um)):
        if value is not None and not (np.isfinite(value) and value > 0):
            problems.add(f"`{name}` needs a positive length in µm, but is {value}.", ValueError)
    if image_key not in sdata.images:
        problems.missing("image_key", image_key, "sdata.images", list(sdata.images))
    if table_key not in sdata.tables:
        problems.missing("table_key", table_key, "sdata.tables", list(sdata.tables))
    if image_key not in sdata.images or table_key not in sdata.tables:
        problems.raise_if_any()
    readable = check_image(sdata.images[image_key], image_key, problems)
    has_pixels = bool(levels(sdata.images[image_key]))
    spots = pair(sdata, image_key, table_key, shapes_key, coordinate_system, problems) if has_pixels else None
    table = sdata.tables[table_key]
    rows = spots.rows if spots else np.arange(table.n_obs)  # bad counts are reported beside bad coordinates
    selected = select_counts(table, table_key, rows, layer, genes, problems)
    if spots and spot_um is None and pitch_um is None:
        spot_um, pitch_um = stated_sizes(table, spots.shapes_key)
    # The size of an image with other axes says nothing about the spots.
    geometry = _place(sdata, image_key, spots, bin_um, spot_um, pitch_um, problems) if spots and readable else None
    problems.raise_if_any()
    assert spots is not None and geometry is not None and selected is not None  # for types: None leaves a problem
    he, he_um = resample_he(sdata.images[image_key], image_key, geometry.grid, problems)
    problems.raise_if_any()
    if he_um > bin_um:
        logger.warning(
            "images/%s has %.3g µm per pixel, coarser than bin_um=%.3g: it cannot show single bins",
            image_key,
            he_um,
            bin_um,
        )
    warn_of_doubts(sdata.images[image_key], image_key, he, geometry.grid, geometry.measurement, geometry.scale.pitch_um)
    inside = _inside(
        sdata, image_key, tissue_key, spots, geometry, he, total_counts(table, table_key, rows, layer), problems
    )
    problems.raise_if_any()
    counts, names = selected
    return Observation(
        geometry.grid,
        he,
        he_um,
        geometry.measurement,
        counts,
        names,
        tuple(map(str, table.obs_names[rows])),
        inside,
        Source(
            image_key,
            table_key,
            spots.shapes_key,
            spots.coordinate_system,
            layer,
            geometry.scale.spot_um,
            geometry.scale.pitch_um,
        ),
    )


@dataclass(frozen=True, eq=False)
class _Geometry:
    grid: Grid
    measurement: Measurement
    scale: Scale


def _place(
    sdata: SpatialData,
    image_key: str,
    spots: Paired,
    bin_um: float,
    spot_um: float | None,
    pitch_um: float | None,
    problems: Problems,
) -> _Geometry | None:
    """Grid over the image and the footprints on it; ``None`` after a problem."""
    prints = footprints(spots.shapes, spots.shapes_key, spots.spots_to_px, problems)
    if prints is None:
        return None
    finest = levels(sdata.images[image_key])[0]
    height, width = finest.sizes["y"], finest.sizes["x"]
    xy = prints.xy[spots.places]
    outside = ~((xy >= 0) & (xy <= (width, height))).all(1)
    if outside.any():
        low, high = xy.min(0), xy.max(0)
        problems.add(
            f"images/{image_key}: {outside.sum():,} of {len(xy):,} spots lie outside the image of {width} x {height} "
            f"pixels (they span x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}). The image is "
            f"probably not in the spots' coordinate system {spots.coordinate_system!r}; pass another "
            f"`coordinate_system=` or `image_key=`."
        )
    sizes = scale(prints, spots.shapes_key, spot_um, pitch_um, problems)
    if problems or sizes is None:
        return None
    grid = Grid.over_image((height, width), sizes.um_per_px, bin_um)
    operator = squares if prints.square else discs
    return _Geometry(grid, operator(grid.px_to_bins(xy[:, ::-1]), sizes.spot_um / bin_um, grid.shape), sizes)


def _inside(
    sdata: SpatialData,
    image_key: str,
    tissue_key: str | None,
    spots: Paired,
    geometry: _Geometry,
    he: np.ndarray,
    totals: np.ndarray,
    problems: Problems,
) -> np.ndarray:
    grid, measurement = geometry.grid, geometry.measurement
    if tissue_key is None:
        return detect_tissue(he, grid, measurement, geometry.scale.pitch_um, totals)
    mask = read_mask(sdata, tissue_key, sdata.images[image_key], spots.coordinate_system, grid, problems)
    return mask | (measurement.coverage > 0)
