"""Footprints of the spots in image pixels, and the size of a pixel in µm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import shapely
from anndata import AnnData

from hadmst_sc.io.lattice import fitted_pitch, lattice
from hadmst_sc.io.match import FINITE, PLACES, code, place
from hadmst_sc.io.resolve import TO_SPOTS, transform
from hadmst_sc.io.values import numbers
from hadmst_sc.section.errors import Problems, logger

SIZES = ("spot_um", "pitch_um")  # as a table states them, µm
SAME = 0.02  # relative difference below which sizes count as equal
# Space Ranger draws Visium's 55 µm spots 0.55 to 0.70 pitches wide (`spot_diameter_fullres`: 0.60 for 11 mm CytAssist,
# 0.70 for 6.5 mm CytAssist and DLPFC, 0.65 for many), so the drawn circle gives the platform, not the footprint.
VISIUM, VISIUM_DRAWN = (55.0, 100.0), (0.535, 0.715)  # diameter and pitch in µm; drawn diameter / pitch
LEGACY, LEGACY_DRAWN = (100.0, 200.0), (0.48, 0.52)  # Spatial Transcriptomics, on a square lattice
FEW = 20  # with fewer spots, noise may hide the lattice
STEREO_UM = 0.5  # distance between DNBs of Stereo-seq
PLAUSIBLE_UM = (0.1, 5000.0)  # sizes of spots and bins of any platform
TURNED = 0.01  # radians below which squares count as parallel to the axes: 0.5 % of their edge
ROUND = 0.9  # smallest isoperimetric quotient of a polygon that represents a disc; a disc has 1, a square 0.79


@dataclass(frozen=True, eq=False)
class Footprints:
    """All observations of a shapes element, in image pixels.

    Parameters
    ----------
    xy
        ``(n, 2)`` centres.
    size
        Diameter of a disc or edge of a square; NaN if it is not drawn.
    square
        True for squares, False for discs.
    angle
        Rotation of the edges of a square from the x axis towards y, radians.
    """

    xy: np.ndarray
    size: float
    square: bool
    angle: float = 0.0


@dataclass(frozen=True)
class Scale:
    """Physical sizes: µm per image pixel, diameter or edge of a footprint, distance between neighbours."""

    um_per_px: float
    spot_um: float
    pitch_um: float


def footprints(shapes: Any, key: str, spots_to_px: np.ndarray, problems: Problems) -> Footprints | None:
    """Return circles or squares of one size, or centres of a lattice, in image pixels; ``None`` after a problem."""
    stretch = np.linalg.svd(spots_to_px[:2, :2], compute_uv=False)
    if not stretch[1] * (1 + SAME) >= stretch[0] > 0:
        problems.add(
            f"{place(shapes, key)}: needs a transformation to the image with one scale, but it stretches by "
            f"{stretch[0]:.4g} and {stretch[1]:.4g}, so spots become ellipses. Give image and spots transformations "
            f"with equal factors along x and y, or resample the image to square pixels."
        )
        return None
    if _without_place(shapes, key, problems):
        return None
    zoom = float(np.sqrt(stretch[0] * stretch[1]))
    kinds, geometry = set(shapes.geom_type), np.asarray(shapes.geometry)
    if kinds <= {"Polygon", "MultiPolygon"} and (shapely.get_num_geometries(geometry) == 1).all():
        geometry = shapely.get_geometry(geometry, 0)  # some files keep each polygon as a collection of one
        kinds = {"Polygon"}
    if kinds == {"Point"}:
        xy = transform(spots_to_px, np.c_[shapes.geometry.x, shapes.geometry.y])
        return _points(key, xy, shapes["radius"] if "radius" in shapes else None, zoom, problems)
    if kinds == {"Polygon"}:
        return _polygons(key, geometry, spots_to_px, zoom, problems)
    problems.add(
        f"shapes/{key}: needs circles, squares or points of a lattice, but has {sorted(kinds)}. Only footprints of "
        f"known size can be summed over bins. {TO_SPOTS}"
    )
    return None


def _without_place(shapes: Any, key: str, problems: Problems) -> bool:
    """Add a problem for spots without a position, or several spots at one position."""
    lost = ~np.isfinite(shapes.bounds.to_numpy()).all(1)
    if lost.any():
        first = shapes.index[lost].tolist()[:5]
        problems.add(
            f"{place(shapes, key)}: needs a position for each spot, but {lost.sum():,} of {len(lost):,} geometries are "
            f"missing, empty or not finite (ids {first}). Remove them: `{code(shapes, key, FINITE)}`."
        )
        return True
    corners = shapes.bounds.to_numpy()
    twice = pd.DataFrame(corners).duplicated().to_numpy()
    if twice.any():
        problems.add(
            f"{place(shapes, key)}: needs each spot at its own position, but {twice.sum():,} of {len(twice):,} share "
            f"the position of another one (ids {shapes.index[twice].tolist()[:5]}). Keep the first of each: "
            f"`{code(shapes, key, PLACES)}`."
            if twice.sum() < len(twice) - 1
            else f"{place(shapes, key)}: all {len(twice):,} spots are at one position, {corners[0, :2].tolist()}. The "
            f"positions were lost; read the section again from its files."
        )
    return bool(twice.any())


def _points(key: str, xy: np.ndarray, radii: Any, zoom: float, problems: Problems) -> Footprints | None:
    """Return circles; centres without a size become bins on a square lattice, and circles otherwise."""
    if radii is None:
        found = lattice(xy)
        square = found.kind == "square"
        return Footprints(xy, found.pitch if square else float("nan"), square, _turned(found.angle) if square else 0.0)
    sizes = 2 * zoom * numbers(radii)
    good = np.isfinite(sizes) & (sizes > 0)
    if not good.all():
        found, radius = lattice(xy), f"sdata[{key!r}]['radius']"
        if good.any():
            remedy = f"Give all the same: `{radius} = {np.median(sizes[good]) / 2 / zoom:.6g}`."
        elif found.kind == "hexagonal":
            remedy = f"For Visium call `{radius} = {VISIUM[0] / VISIUM[1] / 2 * found.pitch / zoom:.6g}`."
        else:
            remedy = f"Call `del {radius}`, and pass diameter and distance as `spot_um=` and `pitch_um=`."
        problems.add(
            f"shapes/{key}: needs positive sizes, but the radius of {(~good).sum():,} of {len(sizes):,} spots is "
            f"not, such as {radii[~good].tolist()[0]!r}. {remedy}"
        )
        return None
    prints = _one_size(key, xy, sizes, False, problems)
    if prints is None or _named_edge(key) is None:
        return prints
    found = lattice(xy)  # bins of Visium HD that were drawn as circles
    side_by_side = found.kind == "square" and abs(prints.size / found.pitch - 1) <= 2 * SAME
    return Footprints(xy, prints.size, True, _turned(found.angle)) if side_by_side else prints


def _polygons(
    key: str, geometry: np.ndarray, spots_to_px: np.ndarray, zoom: float, problems: Problems
) -> Footprints | None:
    """Return squares of any rotation, or circles drawn as polygons."""
    corners = shapely.get_coordinates(geometry)
    if len(corners) == 5 * len(geometry):  # a closed ring of four corners each, and no holes
        return _squares(key, transform(spots_to_px, corners).reshape(-1, 5, 2), problems)
    area, around = shapely.area(geometry), shapely.length(geometry)
    if (4 * np.pi * area >= ROUND * around**2).all():
        xy = transform(spots_to_px, shapely.get_coordinates(shapely.centroid(geometry)))
        return _one_size(key, xy, 2 * zoom * np.sqrt(area / np.pi), False, problems)
    problems.add(
        f"shapes/{key}: needs circles or squares, but has other polygons. Only footprints of known size can be summed "
        f"over bins. {TO_SPOTS}"
    )
    return None


def _squares(key: str, corners: np.ndarray, problems: Problems) -> Footprints | None:
    edges = np.diff(corners, axis=1)  # (n, 4, 2)
    length = np.hypot(*np.moveaxis(edges, -1, 0))
    across = np.abs((edges[:, 0] * edges[:, 1]).sum(1)) / np.maximum(length[:, 0] * length[:, 1], 1e-300)
    if (np.ptp(length, axis=1) > SAME * length.mean(1)).any() or (across > SAME).any():
        problems.add(
            f"shapes/{key}: needs squares, but the quadrilaterals have unequal edges or angles. Only footprints of "
            f"known form can be summed over bins. {TO_SPOTS}"
        )
        return None
    xy = corners[:, :4].mean(1)
    prints = _one_size(key, xy, length.mean(1), True, problems)
    if prints is None:
        return None
    angles = np.exp(4j * np.arctan2(edges[:, 0, 1], edges[:, 0, 0]))
    mean = angles.mean()
    if (np.abs(angles - mean / max(abs(mean), 1e-300)) > 4 * SAME).any():
        problems.add(
            f"shapes/{key}: needs squares of one rotation, but they are rotated by different angles. Squares of an "
            f"array are parallel. {TO_SPOTS}"
        )
        return None
    found = lattice(xy)
    if found.kind == "square" and abs(found.pitch / prints.size - 1) <= SAME:
        # Adjacent squares tile the lattice, so the lattice gives the rotation: `spatialdata_io.visium_hd` draws bins
        # parallel to the axes, although the array is rotated relative to the image.
        return Footprints(xy, prints.size, True, _turned(found.angle))
    return Footprints(xy, prints.size, True, _turned(float(np.angle(mean) / 4)))


def _turned(angle: float) -> float:
    return angle if abs(angle) > TURNED else 0.0


def _one_size(key: str, xy: np.ndarray, sizes: np.ndarray, square: bool, problems: Problems) -> Footprints | None:
    size = float(np.median(sizes))
    if np.ptp(sizes) > 2 * SAME * size:
        problems.add(
            f"shapes/{key}: needs spots of one size, but they range from {sizes.min():.4g} to {sizes.max():.4g} "
            f"pixels. Cells and segmentations are not spots. {TO_SPOTS}"
        )
        return None
    return Footprints(xy, size, square)


def stated_sizes(
    table: AnnData, table_key: str, rows: np.ndarray, shapes_key: str, problems: Problems
) -> tuple[float | None, float | None]:
    """Return diameter and pitch of the spots in µm as the table states them; ``None`` for a missing value.

    They are stated in ``uns`` under the name of the spots, or in columns of ``obs``, which outlast new names and
    concatenation. Sizes in ``uns`` under other names count too, because spots may have been renamed.

    Parameters
    ----------
    table, table_key
        The table and its name, for messages.
    rows
        Rows of the spots.
    shapes_key
        Present name of the spots.
    problems
        Receives a problem if the table states several sizes, and it is unclear which are those of the spots.
    """
    stated = table.uns.get("spatial")
    by_name = {str(name): _sizes(one) for name, one in stated.items()} if isinstance(stated, Mapping) else {}
    if shapes_key in by_name:
        return by_name[shapes_key]
    columns = [name for name in SIZES if name in table.obs]
    in_obs = table.obs.iloc[rows][columns].drop_duplicates().dropna()
    of_rows = [[_length(one[name]) if name in columns else None for name in SIZES] for _, one in in_obs.iterrows()]
    found = {(spot_um, pitch_um) for spot_um, pitch_um in of_rows} if columns else {*by_name.values()}
    found -= {(None, None)}
    if len(found) > 1:
        problems.add(
            f"tables/{table_key}: states several sizes of spots (diameter, pitch in µm): {sorted(map(str, found))}. "
            f"Pass `spot_um=` and `pitch_um=` of {shapes_key!r}."
        )
        return None, None
    spot_um, pitch_um = next(iter(found), (None, None))
    return spot_um, pitch_um


def _sizes(library: Any) -> tuple[float | None, float | None]:
    """Return diameter and pitch from an entry of ``uns["spatial"]``."""
    found = library.get("metadata") if isinstance(library, Mapping) else None
    spot_um, pitch_um = (_length(found.get(name)) if isinstance(found, Mapping) else None for name in SIZES)
    return spot_um, pitch_um


def _length(value: Any) -> float | None:
    """Return a positive number, also from an array of one element, as stores return; otherwise ``None``."""
    value = value.item() if isinstance(value, np.ndarray | np.generic) and value.size == 1 else value
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < np.inf
    return float(value) if number else None


def scale(
    prints: Footprints, key: str, spot_um: float | None, pitch_um: float | None, problems: Problems
) -> Scale | None:
    """Compute µm per pixel from given sizes, or from those of the platform, known by lattice and diameter / pitch."""
    given = {name: one for name, one in (("spot_um", spot_um), ("pitch_um", pitch_um)) if one is not None}
    if not all(PLAUSIBLE_UM[0] <= one <= PLAUSIBLE_UM[1] for one in given.values()):
        problems.add(_in_another_unit(given), ValueError)
        return None
    if prints.square:
        return _square_scale(prints, key, spot_um, pitch_um, problems)
    pitch, platform, sure = _platform(prints)
    if spot_um is not None and pitch_um is not None:
        if not sure and np.isfinite(prints.size):
            logger.warning(
                "shapes/%s: few spots have a neighbour, so µm per pixel are computed from `spot_um=%g` and the "
                "circles' diameter of %.4g pixels. Space Ranger draws circles up to 27 %% too wide",
                key,
                spot_um,
                prints.size,
            )
            return Scale(spot_um / prints.size, spot_um, pitch_um)
        if np.isfinite(pitch):
            return Scale(pitch_um / pitch, spot_um, pitch_um)
    elif pitch_um is not None and np.isfinite(pitch) and (platform or np.isfinite(prints.size)):
        spot = platform[0] / platform[1] * pitch_um if platform else prints.size * pitch_um / pitch
        return Scale(pitch_um / pitch, spot, pitch_um)
    elif spot_um is not None and platform:
        pitch_um = spot_um * platform[1] / platform[0]
        return Scale(pitch_um / pitch, spot_um, pitch_um)
    elif spot_um is not None and np.isfinite(prints.size):
        um_per_px = spot_um / prints.size
        return Scale(um_per_px, spot_um, um_per_px * pitch if np.isfinite(pitch) else 2 * spot_um)
    elif platform:
        return Scale(platform[1] / pitch, *platform)
    problems.add(_unknown_scale(prints, key, pitch))
    return None


def _in_another_unit(given: dict[str, float]) -> str:
    """Describe sizes that no platform has, with converted values if another unit explains them."""
    stated = " and ".join(f"`{name}={one:g}`" for name, one in given.items())
    for unit, factor in (("metres", 1e6), ("millimetres", 1e3), ("nanometres", 1e-3)):
        if all(1 <= one * factor <= PLAUSIBLE_UM[1] for one in given.values()):
            passed = ", ".join(f"{name}={one * factor:g}" for name, one in given.items())
            return f"{stated}, passed or in the table's `uns`: these are not µm, but perhaps {unit}. Pass `{passed}`."
    low, high = PLAUSIBLE_UM
    return (
        f"{stated}, passed or in the table's `uns`: spots need sizes of {low:g} to {high:g} µm. Pass diameter and "
        f"pitch in µm, such as `spot_um=55, pitch_um=100` for Visium."
    )


def overlap(sizes: Scale) -> str:
    """Describe spots wider than their pitch; the two may be exchanged."""
    spot, pitch = sizes.spot_um, sizes.pitch_um
    exchanged = LEGACY_DRAWN[0] <= pitch / spot <= VISIUM_DRAWN[1]
    spot, pitch = (pitch, spot) if exchanged else (0.55 * pitch, pitch)
    return (
        f"`spot_um={sizes.spot_um:g}` and `pitch_um={sizes.pitch_um:g}`, passed or in the table's `uns`: spots need a "
        f"diameter of at most their pitch. Spots that overlap would count molecules twice. "
        f"{'Diameter and pitch seem to be exchanged: pass' if exchanged else 'Pass'} "
        f"`spot_um={spot:g}, pitch_um={pitch:g}`."
    )


def _unknown_scale(prints: Footprints, key: str, pitch: float) -> str:
    kind = lattice(prints.xy).kind
    found = f"diameter / pitch is {prints.size / pitch:.3f}" if np.isfinite(prints.size) else "spots have no diameter"
    found = found if np.isfinite(pitch) else "there is a single spot"
    on = f" on a {kind} lattice" if kind else ""
    name, (spot, distance) = ("Spatial Transcriptomics", LEGACY) if kind == "square" else ("Visium", VISIUM)
    return (
        f"`spot_um` and `pitch_um` are needed to find the size of a pixel: on shapes/{key} {found}{on}, but Visium "
        f"has 0.55 to 0.70 on a hexagonal and Spatial Transcriptomics 0.50 on a square lattice. Pass diameter and "
        f"pitch of the spots: `spot_um={spot:g}, pitch_um={distance:g}` if this is {name}."
    )


def _platform(prints: Footprints) -> tuple[float, tuple[float, float] | None, bool]:
    """Return the pitch in pixels, the platform if lattice and ratio identify one, and True if the pitch is certain."""
    found = lattice(prints.xy)
    hidden = found.line or len(prints.xy) < FEW
    # Along one axis of a hexagonal lattice, spots of the same column are sqrt(3) pitches apart.
    for pitch in (found.pitch, found.pitch / np.sqrt(3)) if found.line else (found.pitch,):
        ratio = prints.size / pitch
        for kind, platform, (low, high) in _PLATFORMS:
            if (found.kind == kind or (hidden and found.kind is None)) and low <= ratio <= high:
                return float(pitch), platform, True
    if not found.dense or found.kind is None:  # most spots are missing, as in a table of twenty spots
        for kind, platform, (low, high) in _PLATFORMS:
            fitted = fitted_pitch(prints.xy, prints.size / high, prints.size / low, kind) if prints.size > 0 else None
            if fitted is not None:
                return fitted, platform, True
    return found.pitch, None, found.dense and found.kind is not None


_PLATFORMS: tuple[tuple[Literal["hexagonal", "square"], tuple[float, float], tuple[float, float]], ...] = (
    ("hexagonal", VISIUM, VISIUM_DRAWN),
    ("square", LEGACY, LEGACY_DRAWN),
)


def _square_scale(
    prints: Footprints, key: str, spot_um: float | None, pitch_um: float | None, problems: Problems
) -> Scale | None:
    if spot_um and pitch_um and spot_um > pitch_um * (1 + SAME):
        problems.add(f"`spot_um={spot_um}` is larger than `pitch_um={pitch_um}`: squares overlap. Pass one of them.")
        return None
    if pitch_um and np.isfinite(pitch := lattice(prints.xy).pitch):  # larger than the edge if channels leave gaps
        um_per_px = pitch_um / pitch
        return Scale(um_per_px, spot_um or prints.size * um_per_px, pitch_um)
    edge = spot_um or pitch_um or _named_edge(key)
    if edge is None:
        problems.add(
            f"`spot_um` is needed to find the size of a pixel: shapes/{key} are squares of {prints.size:.4g} pixels. "
            f"Pass their edge in µm: `spot_um=8` if these are bins of 8 µm."
        )
        return None
    return Scale(edge / prints.size, edge, edge)


def _named_edge(key: str) -> float | None:
    """Return the edge in µm by the reader's name: ``square_008um`` of Visium HD, ``bin50_genes`` of Stereo-seq."""
    if named := re.search(r"square_(\d+)um", key):
        return float(named[1])
    named = re.fullmatch(r"bin(\d+)_genes", key)
    return float(named[1]) * STEREO_UM if named else None
