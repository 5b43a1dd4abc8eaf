"""Find the bins in tissue, from a mask in the SpatialData object or from the H&E near the spots."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.ndimage import distance_transform_edt, gaussian_filter, label
from scipy.spatial import cKDTree
from skimage.draw import polygon
from skimage.filters import threshold_otsu
from spatialdata import SpatialData

from hadmst_sc.io.resample import bin_colours
from hadmst_sc.io.resolve import affine, invertible, levels, systems
from hadmst_sc.io.values import numbers
from hadmst_sc.section.errors import Problems, logger
from hadmst_sc.section.grid import Grid
from hadmst_sc.section.measurement import Measurement

# Lengths in pitches. A held-out spot next to a known one ends 1.28 pitches from the centre of that one.
SURE = 1.5  # tissue reaches this far from the spots if the image cannot separate glass from tissue
REACH = 2.0  # tissue never reaches further than this
# All other constants were tuned on thirteen public sections, with a quarter of the spots held out before reading, and
# on the lumina of 36 phantoms; the values are not critical.
WIDTH_UM = 60.0  # narrowest glass that is detected; gaps between cells and in fat are narrower
BLUR_UM = 5.0  # standard deviation of the smoothing of the stain
MARGIN_UM = 15.0  # width of the transition between glass and tissue
TYPICAL = 0.7  # typical total / upper quartile of totals: about their median, even if half of the spots are on glass
FEW_COUNTS = 0.3  # share of a typical total below which a spot does not prove tissue
CONTRADICTED = 0.01  # too many spots with counts on glass are this share of all spots,
AGAINST = 3  # and at least this number, because single spots are noisy
SHADES = 10.0  # glass may be darker than its mean shade by this many of its standard deviations
CLEAR = (3.0, 4.0)  # from glass to pale tissue, in these units: uncertain below the first, clear above the second
LIGHT = 30.0  # gap between lumen and tissue / least standard deviation of glass, as brightness varies between lumina
LEAST_SPREAD = 0.01  # smallest standard deviation of the shade of glass, in units of stain
LEAST_GAP = 0.1  # smallest stain between a lumen and its surroundings if the image shows no glass beyond the spots
SPECK_UM2 = 100.0**2  # smaller stained areas without a spot are debris
WHITE = 0.004  # stain of pure white
FLAT = 0.02  # range of the stain (0..2) below which an image shows nothing


class Evidence(NamedTuple):
    """Spots whose counts prove tissue."""

    shares: sparse.csr_matrix  # (spots, bins), share of the spot's area in each bin
    counts: np.ndarray  # (spots,) total counts over a typical total, at most 1
    n_spots: int  # all spots of the section, with or without counts

    def on(self, glass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return spots (index) mostly on ``glass``, and True for those with more counts than their rest explains."""
        share = self.shares @ glass.ravel().astype(float)
        spots = np.flatnonzero(share > 0.5)
        return spots, self.counts[spots] > FEW_COUNTS + 1.5 * (1 - share[spots])

    def contradict(self, glass: np.ndarray) -> bool:
        """Return True if too many spots with counts are on ``glass``."""
        return bool(self.on(glass)[1].sum() >= max(AGAINST, CONTRADICTED * self.n_spots))


class Shade(NamedTuple):
    """Stain of glass: robust mean and standard deviation."""

    stain: float
    spread: float


def spot_distance(grid: Grid, measurement: Measurement, reach: float) -> np.ndarray:
    """Return ``(ny, nx)`` distance to the nearest spot centre, in bins; 0 under a spot, infinite beyond ``reach``."""
    limit = reach * (1 + 1e-6)
    distance = cKDTree(measurement.centres).query(grid.centres(), distance_upper_bound=limit)[0].reshape(grid.shape)
    return np.where(measurement.coverage > 0, 0.0, distance)


def near_spots(grid: Grid, measurement: Measurement, reach: float) -> np.ndarray:
    """Return ``(ny, nx)`` bool, True for bins with centres within ``reach`` bins of a spot centre or under a spot."""
    return np.isfinite(spot_distance(grid, measurement, reach))


def detect_tissue(
    he: np.ndarray, grid: Grid, measurement: Measurement, pitch_um: float, totals: np.ndarray | None = None
) -> np.ndarray:
    """Find the bins in tissue: all bins near a spot, except where the image clearly shows glass.

    Bins under a spot are always tissue. Others are tissue up to two pitches from a spot, unless they are glass (see
    :func:`find_glass`). If the image cannot separate glass from tissue, all bins within 1.5 pitches are tissue.

    Parameters
    ----------
    he
        ``(3, ny * k, nx * k)`` uint8.
    totals
        ``(spots,)`` counts of each spot over all genes. Spots with few counts do not prove tissue; ``None``: all do.

    Returns
    -------
    ``(ny, nx)`` bool.
    """
    under, away = measurement.coverage > 0, _pitches_away(grid, measurement, pitch_um)
    glass = _glass(he, grid, measurement, pitch_um, away, totals)
    if glass is None:
        return _surely_near(away)
    mask = (np.isfinite(away) & ~glass) | under
    return _without_specks(mask, under, SPECK_UM2 / grid.bin_um**2)


def find_glass(
    he: np.ndarray, grid: Grid, measurement: Measurement, pitch_um: float, totals: np.ndarray | None = None
) -> np.ndarray | None:
    """Find bins that show glass, with or without a spot; ``None`` if the image cannot separate glass from tissue.

    Glass has the shade of the image beyond the spots, or if the image ends there, of a lumen that stands out. It is at
    least 60 µm wide. The range of shades is narrowed until the spots with counts on glass are fewer than three, or
    fewer than 1 % of all spots.

    Parameters
    ----------
    he, totals
        As in :func:`detect_tissue`.

    Returns
    -------
    ``(ny, nx)`` bool, or ``None``.
    """
    return _glass(he, grid, measurement, pitch_um, _pitches_away(grid, measurement, pitch_um), totals)


def _pitches_away(grid: Grid, measurement: Measurement, pitch_um: float) -> np.ndarray:
    """Return :func:`spot_distance` in pitches, infinite beyond ``REACH``."""
    pitch = pitch_um / grid.bin_um
    return spot_distance(grid, measurement, REACH * pitch) / pitch


def _surely_near(away: np.ndarray) -> np.ndarray:
    return away <= SURE * (1 + 1e-6)


def _glass(
    he: np.ndarray, grid: Grid, measurement: Measurement, pitch_um: float, away: np.ndarray, totals: np.ndarray | None
) -> np.ndarray | None:
    stain, blank = _stain(he, grid)
    near = np.isfinite(away)
    if np.ptp(stain[near]) < FLAT:
        logger.warning(
            "the image has no contrast: all bins within %.4g µm of a spot count as tissue. Pass `tissue_key=` to "
            "decide yourself",
            SURE * pitch_um,
        )
        return None
    stain = gaussian_filter(stain, BLUR_UM / grid.bin_um)
    evidence = _evidence(measurement, totals)
    of_spots = evidence.shares @ stain.ravel()
    shade = _shade_beyond(stain, blank, _surely_near(away), of_spots, grid)
    if shade is None:
        shade = _shade_of_lumina(stain, blank, near, evidence, grid)
    if shade is None:
        return None
    pale = np.quantile(of_spots, 0.1)
    clear = (pale - shade.stain) / shade.spread
    if clear < CLEAR[0]:
        return None
    threshold = shade.stain + (pale - shade.stain) / 2 * float(np.interp(clear, CLEAR, (0, 1)))
    while True:
        glass = _without_tissue(_glass_up_to(threshold, stain, blank, shade, grid), near, evidence)
        if not evidence.contradict(glass) or threshold <= stain.min():
            return glass
        threshold -= max(0.1 * abs(threshold - shade.stain), 0.002)


def _evidence(measurement: Measurement, totals: np.ndarray | None) -> Evidence:
    counts = np.ones(len(measurement))
    if totals is not None and (typical := TYPICAL * np.quantile(totals, 0.75)) > 0:
        counts = np.minimum(totals / typical, 1)
    rows = np.flatnonzero((counts >= FEW_COUNTS) & (measurement.area > 0))
    shares = sparse.diags(1 / measurement.area[rows]) @ measurement.matrix[rows]
    return Evidence(sparse.csr_matrix(shares), counts[rows], len(measurement))


def _shade(stain: np.ndarray) -> Shade:
    middle = float(np.median(stain))
    return Shade(middle, max(1.4826 * float(np.median(np.abs(stain - middle))), LEAST_SPREAD))


def _shade_beyond(
    stain: np.ndarray, blank: np.ndarray, near: np.ndarray, of_spots: np.ndarray, grid: Grid
) -> Shade | None:
    """Return the shade of the image beyond the spots; ``None`` if it ends before, or shows tissue there."""
    beyond, enough = stain[~near & ~blank], 200.0**2 / grid.bin_um**2
    if len(beyond) < enough:
        return None
    shown = beyond[beyond > WHITE]  # an image is often padded with pure white
    shade = _shade(shown if len(shown) >= enough else beyond)
    return shade if shade.stain + 3 * shade.spread < np.median(of_spots) else None


def _shade_of_lumina(
    stain: np.ndarray, blank: np.ndarray, near: np.ndarray, evidence: Evidence, grid: Grid
) -> Shade | None:
    """Return the shade of the palest wide area that stands out from its surroundings and has no spots with counts."""
    shown = stain[~blank]
    # By increasing share of the image; Otsu's threshold for glass that covers much of it.
    for threshold in (*np.quantile(shown, (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)), threshold_otsu(shown)):
        area = _without_tissue(_wide((stain <= threshold) & ~blank, grid), near, evidence)
        if area.sum() * grid.bin_um**2 < 100.0**2:
            continue
        shade, away_um = _shade(stain[area]), distance_transform_edt(~area) * grid.bin_um
        around = stain[(away_um > WIDTH_UM / 4) & (away_um <= WIDTH_UM) & ~blank]
        gap = np.median(around) - shade.stain if len(around) else 0.0
        if gap >= max(LEAST_GAP, 5 * shade.spread) and not evidence.contradict(area):
            return Shade(shade.stain, max(shade.spread, gap / LIGHT))
    return None


def _glass_up_to(threshold: float, stain: np.ndarray, blank: np.ndarray, shade: Shade, grid: Grid) -> np.ndarray:
    """Return wide areas with the shade of glass, and their edges up to the threshold."""
    core = _wide((stain <= min(threshold, shade.stain + SHADES * shade.spread)) | blank, grid)
    if not core.any():
        return core
    return core | ((distance_transform_edt(~core) * grid.bin_um <= MARGIN_UM) & (stain <= threshold))


def _without_tissue(glass: np.ndarray, near: np.ndarray, evidence: Evidence) -> np.ndarray:
    """Remove enclosed areas in which most spots have counts: pale tissue, such as fat."""
    spots, wrong = evidence.on(glass)
    if not wrong.any():
        return glass
    parts, n = label(glass)
    bins_per_part = [np.bincount(parts.ravel()[evidence.shares[spot].indices]) for spot in spots]
    part = np.array([1 + int(found[1:].argmax()) for found in bins_per_part])
    on, against = (np.bincount(part[some], minlength=n + 1) for some in (slice(None), wrong))
    pale = (2 * against > on) & (against >= AGAINST)
    pale[np.unique(parts[~near])] = False
    return glass & ~pale[parts]


def _wide(mask: np.ndarray, grid: Grid) -> np.ndarray:
    """Return parts of a mask in which a disc of ``WIDTH_UM`` fits (an opening); the border of the image is extended."""
    radius = max(1, round(WIDTH_UM / 2 / grid.bin_um))
    padded = np.pad(mask, radius + 1, mode="edge")
    core = distance_transform_edt(padded) > radius
    if not core.any():
        return np.zeros_like(mask)
    opened = padded & (distance_transform_edt(~core) <= radius)
    return opened[radius + 1 : -radius - 1, radius + 1 : -radius - 1]


def _without_specks(mask: np.ndarray, under: np.ndarray, area: float) -> np.ndarray:
    """Keep connected parts that contain a spot or have at least ``area`` bins."""
    parts, _ = label(mask)
    keep = np.bincount(parts.ravel()) >= area
    keep[parts[under]] = True
    keep[0] = False
    return keep[parts]


def _stain(he: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the stain (colour plus darkness) of each bin, ``(ny, nx)``, and True for bins of black padding.

    The stain is about 0 for white glass, larger for stained tissue, and set to 0 for padding.
    """
    rgb = bin_colours(he, grid)
    blank = rgb.max(0) < 0.05
    return np.where(blank, 0.0, np.ptp(rgb, axis=0) + 1 - rgb.mean(0)), blank


DETECT = "Correct it, or pass `tissue_key=None` to detect the tissue."


def read_mask(
    sdata: SpatialData, key: str, image: Any, coordinate_system: str, grid: Grid, problems: Problems
) -> np.ndarray:
    """Evaluate labels or shapes at the bin centres, through the transformations; all ``False`` after a problem."""
    empty = np.zeros(grid.shape, bool)
    if key not in sdata.labels and key not in sdata.shapes:
        problems.missing("tissue_key", key, "sdata.labels or sdata.shapes", [*sdata.labels, *sdata.shapes])
        return empty
    element = sdata[key]
    if key in sdata.shapes and (lost := _circles(element) & ~(_radii(element) > 0)).any():
        problems.add(
            f"`tissue_key={key!r}`: needs circles with a positive radius, but that of {lost.sum():,} of "
            f"{len(element):,} shapes is not, such as {element['radius'][lost].iloc[0]!r}. {DETECT}"
        )
        return empty
    if wrong := _nothing_in(element, is_labels=key in sdata.labels):
        problems.add(f"`tissue_key={key!r}`: needs areas that are tissue, but {wrong}. {DETECT}")
        return empty
    shared = [name for name in systems(image) if name in systems(element)]
    if not shared:
        problems.add(
            f"`tissue_key={key!r}`: shares no coordinate system with the image, which has {list(systems(image))}, but "
            f"has {list(systems(element))}. {DETECT}"
        )
        return empty
    # The image's transformation to the coordinate system of the spots is already checked.
    good = [name for name in shared if invertible(affine(element, name)) and invertible(affine(image, name))]
    if not good:
        problems.add(
            f"`tissue_key={key!r}`: its transformation to {shared[0]!r} is not finite or singular: "
            f"{affine(element, shared[0])[:2].tolist()}. {DETECT}"
        )
        return empty
    name = coordinate_system if coordinate_system in good else good[0]
    bins_to_own = np.linalg.inv(affine(element, name)) @ affine(image, name) @ np.diag([grid.px_per_bin] * 2 + [1.0])
    mask = _labels(element, bins_to_own, grid) if key in sdata.labels else _shapes(element, bins_to_own, grid)
    if not mask.any():
        problems.add(
            f"`tissue_key={key!r}`: covers no bin of the image; check its transformation to {name!r}. {DETECT}"
        )
    return mask


def _nothing_in(element: Any, *, is_labels: bool) -> str | None:
    """Describe why an element has no area; ``None`` if it has one."""
    if is_labels:
        pyramid = levels(element)
        return "it has no pixels" if not pyramid or 0 in pyramid[0].shape else None
    if not len(element):
        return "it has no shapes"
    area = outlines(element).area
    if not (np.isfinite(area) & (area > 0)).any():
        kinds = sorted({str(kind) for kind in element.geom_type})
        return f"its {len(element):,} shapes have no area ({', '.join(kinds)})"
    return None


def _circles(element: Any) -> np.ndarray:
    """Return ``(n,)`` bool, True for points with a radius; the radius of a polygon is ignored."""
    return np.asarray((element.geom_type == "Point") & ~element.is_empty & ("radius" in element))


def _radii(element: Any) -> np.ndarray:
    """Return ``(n,)`` radii; NaN if missing or not finite numbers."""
    radii = numbers(element["radius"]) if "radius" in element else np.full(len(element), np.nan)
    return np.where(np.isfinite(radii), radii, np.nan)


def outlines(element: Any) -> Any:
    """Return the polygons of shapes; circles are points with a radius."""
    circles = _circles(element)
    return element.geometry.where(~circles, element.geometry.buffer(np.where(circles, _radii(element), 0)))


def _labels(element: Any, bins_to_own: np.ndarray, grid: Grid) -> np.ndarray:
    labelled = np.asarray(levels(element)[0].data) > 0
    yx = grid.centres() @ bins_to_own[1::-1, 1::-1].T + bins_to_own[1::-1, 2]
    row, col = np.floor(yx + 1e-9).astype(int).T
    on = (row >= 0) & (col >= 0) & (row < labelled.shape[0]) & (col < labelled.shape[1])
    mask = np.zeros(grid.n_bins, bool)
    mask[on] = labelled[row[on], col[on]]
    return mask.reshape(grid.shape)


def _shapes(element: Any, bins_to_own: np.ndarray, grid: Grid) -> np.ndarray:
    inverse = np.linalg.inv(bins_to_own)
    parts = outlines(element).affine_transform([*inverse[:2, :2].ravel(), *inverse[:2, 2]])
    mask = np.zeros(grid.shape, bool)
    # A collection may hold lines and points in addition to polygons, but these have no area.
    for part in parts.explode(index_parts=False).explode(index_parts=False):
        if part is None or part.geom_type != "Polygon" or part.is_empty:
            continue
        one = np.zeros(grid.shape, bool)
        for ring in (part.exterior, *part.interiors):
            x, y = np.asarray(ring.coords)[:, :2].T
            one[polygon(y - 0.5, x - 0.5, grid.shape)] ^= True  # skimage has pixel centres at whole numbers
        mask |= one
    return mask
