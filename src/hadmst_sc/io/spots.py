"""Footprints of the spots in image pixels, and what a pixel measures in µm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from scipy.spatial import cKDTree

from hadmst_sc.io.problems import Problems
from hadmst_sc.io.resolve import transform

SAME = 0.02  # relative difference below which sizes count as equal
# Drawn diameter / pitch -> true diameter and pitch in µm. Space Ranger draws Visium's 55 µm spots 65 µm wide
# (`spot_diameter_fullres` is 0.653 pitches in its output), so the drawn circle is a key, not the footprint.
PLATFORMS = {0.55: (55.0, 100.0), 0.65: (55.0, 100.0), 0.50: (100.0, 200.0)}
HEXAGONAL = {0.55: True, 0.65: True, 0.50: False}
SIDE_BY_SIDE = 4  # neighbours of a bin among bins
STEREO_UM = 0.5  # between DNBs of Stereo-seq


@dataclass(frozen=True, eq=False)
class Footprints:
    """All observations of a shapes element: ``xy`` ``(n, 2)`` and ``size`` (diameter or edge) in image pixels."""

    xy: np.ndarray
    size: float
    square: bool


@dataclass(frozen=True)
class Scale:
    """Physical sizes: µm per image pixel, diameter or edge of a footprint, distance between neighbours."""

    um_per_px: float
    spot_um: float
    pitch_um: float


def footprints(shapes: Any, key: str, spots_to_px: np.ndarray, problems: Problems) -> Footprints | None:
    """Circles, axis-aligned squares of one size, or centres of bins side by side, in image pixels.

    ``None`` after a problem.
    """
    kinds = set(shapes.geom_type)
    singular = np.linalg.svd(spots_to_px[:2, :2], compute_uv=False)
    if not singular[1] * (1 + SAME) >= singular[0] > 0:
        problems.add(
            f"shapes/{key}: needs a map to the image with one scale, but it stretches by {singular[0]:.4g} and "
            f"{singular[1]:.4g}, so spots become ellipses. Resample the image to square pixels first."
        )
        return None
    if kinds == {"Point"} and "radius" in shapes:
        sizes = 2 * np.asarray(shapes["radius"], float) * np.sqrt(singular[0] * singular[1])
        xy = np.c_[shapes.geometry.x, shapes.geometry.y]
        return _one_size(key, transform(spots_to_px, xy), sizes, False, problems)
    if kinds == {"Point"}:
        xy = transform(spots_to_px, np.c_[shapes.geometry.x, shapes.geometry.y])
        pitch, neighbours = pitch_px(xy)
        if neighbours == SIDE_BY_SIDE:
            return Footprints(xy, pitch, True)
        problems.add(
            f"shapes/{key}: points without a size need to lie on a square lattice, as bins do, but most have "
            f"{neighbours} neighbours. Make circles: `sdata['circles'] = spatialdata.to_circles(sdata[{key!r}], "
            f"radius=...)`."
        )
        return None
    if kinds == {"Polygon"}:
        corners = shapes.geometry.get_coordinates()
        if len(corners) == 5 * len(shapes):  # a closed ring of four corners each, and no holes
            return _squares(key, transform(spots_to_px, corners.to_numpy()).reshape(-1, 5, 2), problems)
    problems.add(
        f"shapes/{key}: needs circles or axis-aligned squares, but has {sorted(kinds)} of other form. Only "
        f"footprints of known size can be summed over bins. Pass another `shapes_key=`."
    )
    return None


def _squares(key: str, corners: np.ndarray, problems: Problems) -> Footprints | None:
    edges = np.abs(np.diff(corners, axis=1))  # (n, 4, 2)
    length = edges.max(2)
    if (edges.min(2) > SAME * length).any():
        problems.add(f"shapes/{key}: needs squares along the image axes, but they are rotated or not rectangular.")
        return None
    if (np.ptp(length, axis=1) > SAME * length.mean(1)).any():
        problems.add(f"shapes/{key}: needs squares, but some rectangles have unequal edges.")
        return None
    return _one_size(key, corners[:, :4].mean(1), length.mean(1), True, problems)


def _one_size(key: str, xy: np.ndarray, sizes: np.ndarray, square: bool, problems: Problems) -> Footprints | None:
    size = float(np.median(sizes))
    if not (np.isfinite(xy).all() and np.isfinite(sizes).all() and size > 0):
        problems.add(f"shapes/{key}: needs finite centres and positive sizes, but some are not.")
        return None
    if np.ptp(sizes) > 2 * SAME * size:
        problems.add(
            f"shapes/{key}: needs spots of one size, but they range from {sizes.min():.4g} to {sizes.max():.4g} "
            f"pixels. Cells and segmentations are no spots; pass another `shapes_key=`."
        )
        return None
    return Footprints(xy, size, square)


def stated_sizes(table: AnnData, shapes_key: str) -> tuple[float | None, float | None]:
    """Diameter and distance of the spots in µm as the table's ``uns`` has them; ``None`` for what it has not."""
    found: Any = table.uns
    for key in ("spatial", shapes_key, "metadata"):
        found = found.get(key) if isinstance(found, Mapping) else None
    sizes = (found.get(name) if isinstance(found, Mapping) else None for name in ("spot_um", "pitch_um"))
    spot_um, pitch_um = (
        float(size) if isinstance(size, int | float | np.number) and 0 < size < np.inf else None for size in sizes
    )
    return spot_um, pitch_um


def pitch_px(xy: np.ndarray) -> tuple[float, int]:
    """Distance between neighbours in pixels (NaN for a single spot), and how many an inner spot has.

    The median over all neighbours within 1.25 of the typical one (the next ring of a square or hexagonal lattice is
    1.41 or 1.73 away). The nearest neighbour alone is biased where positions are noisy: 7 % short on hand-placed ST
    spots.
    """
    if len(xy) < 2:
        return float("nan"), 0
    distance = cKDTree(xy).query(xy, k=min(7, len(xy)))[0][:, 1:]
    pitch = np.median(distance[:, 0])
    for _ in range(2):
        pitch = np.median(distance[distance < 1.25 * pitch])
    return float(pitch), int(np.quantile((distance < 1.25 * pitch).sum(1), 0.9))


def scale(
    prints: Footprints, key: str, spot_um: float | None, pitch_um: float | None, problems: Problems
) -> Scale | None:
    """µm per pixel from known sizes, or from the ratio of diameter to pitch that names the platform."""
    if prints.square:
        return _square_scale(prints, key, spot_um, pitch_um, problems)
    pitch, platform, line = _lattice(prints)
    if spot_um is not None and pitch_um is not None:
        # A single spot has no neighbour, and the spots of one row or column may be non-adjacent.
        sure = np.isfinite(pitch) and (not line or platform is not None)
        return Scale(pitch_um / pitch if sure else spot_um / prints.size, spot_um, pitch_um)
    if pitch_um is not None and np.isfinite(pitch):
        spot = platform[0] / platform[1] * pitch_um if platform else prints.size * pitch_um / pitch
        return Scale(pitch_um / pitch, spot, pitch_um)
    if spot_um is not None and platform:
        pitch_um = spot_um * platform[1] / platform[0]
        return Scale(pitch_um / pitch, spot_um, pitch_um)
    if spot_um is not None:
        um_per_px = spot_um / prints.size
        return Scale(um_per_px, spot_um, um_per_px * pitch if np.isfinite(pitch) else 2 * spot_um)
    if platform:
        return Scale(platform[1] / pitch, *platform)
    found = f"diameter / pitch is {prints.size / pitch:.3f}" if np.isfinite(pitch) else "there is a single spot"
    problems.add(
        f"`spot_um` and `pitch_um` are needed to tell what a pixel measures: on shapes/{key} {found}, which is neither "
        f"Visium (0.55 or 0.65) nor Spatial Transcriptomics (0.50) within 4 %. Pass `spot_um=55, pitch_um=100`."
    )
    return None


def _lattice(prints: Footprints) -> tuple[float, tuple[float, float] | None, bool]:
    """Pitch in pixels, platform if the ratio names one, and whether all spots lie on one line."""
    pitch, neighbours = pitch_px(prints.xy)
    if not np.isfinite(pitch):
        return pitch, None, True
    spread = np.linalg.svd(prints.xy - prints.xy.mean(0), compute_uv=False)[-1] if len(prints.xy) > 2 else 0.0
    line = bool(spread / np.sqrt(len(prints.xy)) < 0.05 * pitch)
    # Along one axis of the hexagonal lattice the next spot of the same column is sqrt(3) pitches away.
    for candidate in (pitch, pitch / np.sqrt(3)) if line else (pitch,):
        for ratio, platform in PLATFORMS.items():
            lattice = line or len(prints.xy) < 20 or (neighbours > 4) == HEXAGONAL[ratio]
            if lattice and abs(prints.size / candidate / ratio - 1) <= 0.04:
                return float(candidate), platform, line
    return pitch, None, line


def _square_scale(
    prints: Footprints, key: str, spot_um: float | None, pitch_um: float | None, problems: Problems
) -> Scale | None:
    if spot_um and pitch_um and spot_um > pitch_um * (1 + SAME):
        problems.add(f"`spot_um={spot_um}` is larger than `pitch_um={pitch_um}`: squares overlap. Pass one of them.")
        return None
    if pitch_um and np.isfinite(pitch := pitch_px(prints.xy)[0]):  # more than the edge where channels leave gaps
        um_per_px = pitch_um / pitch
        return Scale(um_per_px, spot_um or prints.size * um_per_px, pitch_um)
    edge = spot_um or pitch_um or _named_edge(key)
    if edge is None:
        problems.add(
            f"`spot_um` is needed to tell what a pixel measures: shapes/{key} are squares of {prints.size:.4g} pixels. "
            f"Pass `spot_um=8` with their edge in µm."
        )
        return None
    return Scale(edge / prints.size, edge, edge)


def _named_edge(key: str) -> float | None:
    """µm, as readers name bins: ``square_008um`` of Visium HD; ``bin50_genes`` of Stereo-seq, whose unit is 0.5 µm."""
    if named := re.search(r"square_(\d+)um", key):
        return float(named[1])
    named = re.fullmatch(r"bin(\d+)_genes", key)
    return float(named[1]) * STEREO_UM if named else None
