"""Read a section of a SpatialData object into arrays; no other code inspects its elements or resamples."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import dask
import numpy as np
from spatialdata import SpatialData

from hadmst_sc.io.checks import check_sizes, keep_on_image, warn_of_doubts
from hadmst_sc.io.counts import select_counts, total_counts
from hadmst_sc.io.given import check_sdata
from hadmst_sc.io.resample import check_image, resample_he
from hadmst_sc.io.resolve import Paired, levels, pair
from hadmst_sc.io.spots import Footprints, Scale, footprints, overlap, scale, stated_sizes
from hadmst_sc.io.tissue import detect_tissue, read_mask
from hadmst_sc.runtime import Shared, usual_errors
from hadmst_sc.section.arguments import LENGTH, SIZE, TEXT, Requirement, optional, plain
from hadmst_sc.section.errors import Problems, logger
from hadmst_sc.section.grid import Grid
from hadmst_sc.section.measurement import Measurement, discs, squares
from hadmst_sc.section.observation import ENOUGH_SPOTS, Observation, Source

MAX_OVERLAP = 1.2  # largest diameter of circles, in units of their pitch
MAX_BIN = 2  # largest edge of a bin, in pitches of the spots

# Each requirement with a value that meets it.
LENGTHS: dict[str, tuple[Requirement, Any]] = {
    "bin_um": (LENGTH, 10.0),
    "spot_um": (optional(SIZE), None),
    "pitch_um": (optional(SIZE), None),
}
OPTIONAL_KEYS = ("shapes_key", "coordinate_system", "layer", "tissue_key")
OF_CLUSTERS = ("dask.distributed", "distributed")


def _scheduler() -> AbstractContextManager[Any]:
    """Return the Dask scheduler that computes lazy arrays while sections are read and written."""
    chosen = dask.config.get("scheduler", None)
    return dask.config.set(scheduler="threads") if chosen is None or chosen in OF_CLUSTERS else nullcontext()


# A Dask client of the user would first send every image to its workers, and wait forever if there are none.
computed_here = Shared(_scheduler)


def _requirements(sdata: SpatialData) -> dict[str, tuple[Requirement, Any]]:
    """Return requirements of all arguments except ``genes``, each with a value valid for this section."""
    keys = {"image_key": next(iter(sdata.images), "he"), "table_key": next(iter(sdata.tables), "table")}
    return {
        **{name: (TEXT, present) for name, present in keys.items()},
        **{name: (optional(TEXT), None) for name in OPTIONAL_KEYS},
        **LENGTHS,
    }


@computed_here()
@usual_errors
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
    problems: Problems | None = None,
) -> Observation:
    """Read one section; ``sdata`` is not changed.

    Parameters
    ----------
    sdata
        Contains the H&E, the spots and their table.
    image_key
        RGB or RGBA image, plain or a pyramid, uint8, uint16 or floating point.
    table_key
        Table of counts that annotates circles, squares, points or labels. Spots with ``obs["in_tissue"] == 0`` and,
        if they are few, spots outside the image are left out, and their number is given in a warning.
    shapes_key
        Region of the table; needed only if several share a coordinate system with the image.
    coordinate_system
        Coordinate system shared by image and spots; needed only if several fit.
    layer
        Layer with the counts; ``None`` = ``X``, ``"raw"`` = the matrix of ``.raw`` unless a layer has that name.
    genes
        Names; a number for the most informative (see :func:`~hadmst_sc.io.counts.most_informative`); ``None`` for
        ``var["highly_variable"]`` if it is set, else the 200 most informative.
    bin_um
        Edge of a bin, µm.
    spot_um, pitch_um
        Diameter (or edge) and pitch of the spots, µm. If both are ``None`` they are read from
        ``uns["spatial"][<shapes>]["metadata"]`` of the table, where ``datasets.load`` stores them, or the platform is
        identified by drawn diameter / pitch: 0.55 to 0.70 on a hexagonal lattice is Visium (55 and 100 µm), 0.50 on a
        square one Spatial Transcriptomics (100 and 200 µm).
    tissue_key
        Labels or shapes that mark tissue; ``None`` detects it from the H&E and the spots.
    problems
        Problems that the caller has found so far; raised together with those found here.

    Raises
    ------
    TypeError
        If ``sdata`` is not a SpatialData; the message shows how to make one.
    KeyError
        If the only problem is a missing key.
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
    if problems is None:
        problems = Problems(f"cannot pair image {image_key!r} with table {table_key!r}")
    arguments = {
        "image_key": image_key,
        "table_key": table_key,
        "shapes_key": shapes_key,
        "coordinate_system": coordinate_system,
        "layer": layer,
        "tissue_key": tissue_key,
        "bin_um": bin_um,
        "spot_um": spot_um,
        "pitch_um": pitch_um,
    }
    wrong = problems.check(arguments, _requirements(sdata))
    if wrong - LENGTHS.keys():
        problems.raise_if_any()
    # Invalid arguments get a valid value, so that other problems are found too.
    lengths = (LENGTHS[name][1] if name in wrong else plain(arguments[name]) for name in LENGTHS)
    bin_um, spot_um, pitch_um = lengths
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
    prints = None
    if spots:
        prints = footprints(spots.shapes, spots.shapes_key, spots.spots_to_px, problems)
    if spots and prints and readable:  # the size of an image with other axes says nothing about the spots
        spots = keep_on_image(sdata, image_key, spots, prints.xy, table_key, problems)
    rows = spots.rows if spots else np.arange(table.n_obs)  # bad counts are reported together with bad coordinates
    selected = select_counts(table, table_key, rows, layer, genes, problems)
    if spots and spot_um is None and pitch_um is None:
        spot_um, pitch_um = stated_sizes(table, table_key, rows, spots.shapes_key, problems)
        _check_stated(spot_um, pitch_um, table_key, spots.shapes_key, problems)
    geometry = None
    if spots and prints and readable:
        geometry = _place(sdata, image_key, spots, prints, (bin_um, spot_um, pitch_um), problems)
    problems.raise_if_any()
    assert spots is not None and geometry is not None and selected is not None  # for types: None leaves a problem
    with problems.readable(f"images/{image_key}"):
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
    if tissue_key is None:
        totals = total_counts(table, table_key, rows, layer)
        inside = detect_tissue(he, geometry.grid, geometry.measurement, geometry.scale.pitch_um, totals)
    else:
        image, system = sdata.images[image_key], spots.coordinate_system
        inside = read_mask(sdata, tissue_key, image, system, geometry.grid, problems)
        inside |= geometry.measurement.coverage > 0
    problems.raise_if_any()
    for note in (*spots.left_out, *_doubts(len(rows), geometry)):
        logger.warning(note)
    counts, names = selected
    finest = levels(sdata.images[image_key])[0]
    return Observation(
        geometry.grid,
        he,
        he_um,
        geometry.measurement,
        counts if (geometry.visible == 1).all() else counts * geometry.visible[:, None],
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
            (finest.sizes["y"], finest.sizes["x"]),
        ),
        rows,
    )


def _check_stated(
    spot_um: float | None, pitch_um: float | None, table_key: str, shapes_key: str, problems: Problems
) -> None:
    """Add a problem for sizes in ``uns`` that no platform has."""
    for name, size in (("spot_um", spot_um), ("pitch_um", pitch_um)):
        if not optional(SIZE).is_met(size):
            problems.add(
                f"tables/{table_key}: `uns['spatial'][{shapes_key!r}]['metadata'][{name!r}]` needs {SIZE.text}, but is "
                f"{size:g}. Pass `spot_um=55, pitch_um=100`, or what it is, or correct it."
            )


@dataclass(frozen=True, eq=False)
class _Geometry:
    grid: Grid
    measurement: Measurement
    scale: Scale
    visible: np.ndarray  # (spots,) share of each footprint that is on the grid


def _place(
    sdata: SpatialData,
    image_key: str,
    spots: Paired,
    prints: Footprints,
    lengths_um: tuple[float, float | None, float | None],
    problems: Problems,
) -> _Geometry | None:
    """Return the grid over the image and the footprints on it; ``None`` after a problem."""
    finest = levels(sdata.images[image_key])[0]
    bin_um, spot_um, pitch_um = lengths_um
    sizes = scale(prints, spots.shapes_key, spot_um, pitch_um, problems)
    if sizes is None:
        return None
    if bin_um > MAX_BIN * sizes.pitch_um:
        problems.add(
            f"`bin_um` needs bins no larger than {MAX_BIN} times the pitch of the spots, {sizes.pitch_um:g} µm, but is "
            f"{bin_um:g}. A bin of many spots shows less than was measured. Pass `bin_um={sizes.spot_um / 2:g}`.",
            ValueError,
        )
        return None
    if not prints.square and sizes.spot_um > MAX_OVERLAP * sizes.pitch_um:
        problems.add(overlap(sizes), ValueError)
    grid = Grid.over_image((finest.sizes["y"], finest.sizes["x"]), sizes.um_per_px, bin_um)
    check_sizes(sdata.images[image_key], image_key, spots, prints.xy[spots.places], grid, problems)
    if problems:
        return None
    centres, size = grid.px_to_bins(prints.xy[spots.places, ::-1]), sizes.spot_um / bin_um
    if prints.square:
        measurement, whole = squares(centres, size, grid.shape, prints.angle), size**2
    else:
        measurement, whole = discs(centres, size, grid.shape), np.pi * size**2 / 4
    visible = measurement.area / whole
    # A spot at the border also counted molecules outside the image: its visible part gets the visible share of them.
    return _Geometry(grid, measurement, sizes, np.where(visible < 1 - 1e-6, visible, 1).astype(np.float32))


def _doubts(n_spots: int, geometry: _Geometry) -> list[str]:
    """Return warnings about few spots and large bins."""
    doubts, (bin_um, spot_um) = [], (geometry.grid.bin_um, geometry.scale.spot_um)
    if n_spots < ENOUGH_SPOTS:
        doubts.append(
            f"the section has {n_spots} spots: with fewer than {ENOUGH_SPOTS} the match of image and counts cannot be "
            f"checked, and held-out spots say little about the error"
        )
    if bin_um > spot_um * (1 + 1e-6):
        doubts.append(
            f"bins of bin_um={bin_um:g} are larger than the spots of {spot_um:g} µm: the maps show less than was "
            f"measured. Pass `bin_um={spot_um / 2:g}`"
        )
    return doubts
