"""Warnings about images that may not be H&E: fluorescence, phase contrast, or channels that are not colours."""

from __future__ import annotations

from typing import Any

import numpy as np

from hadmst_sc.io.channels import find_channels
from hadmst_sc.io.resample import bin_colours
from hadmst_sc.io.resolve import levels
from hadmst_sc.io.tissue import near_spots
from hadmst_sc.section.errors import logger
from hadmst_sc.section.grid import Grid
from hadmst_sc.section.measurement import Measurement

# Tuned on the public sections of the data folder and 30 phantoms: under their spots the median brightness is at least
# 0.29 (0.39 on real sections), and the median of red minus green at least 0.015.
DARK = 0.25
GREEN = -0.03  # red minus green: haematoxylin and eosin absorb more green than red light
FLAT = 0.02  # range of the brightness below which an image shows nothing
ENOUGH = 30  # bins


def warn_of_doubts(image: Any, key: str, he: np.ndarray, grid: Grid, measurement: Measurement, pitch_um: float) -> None:
    """Log a warning if channels are not named as colours, or if the tissue does not look like H&E.

    Parameters
    ----------
    he
        ``(3, ny * k, nx * k)`` uint8, as read from ``image``.
    """
    strange = find_channels(levels(image)[0]).strange
    if strange:
        logger.warning(
            "images/%s: its channels are called %s, not red, green and blue; the first three are used as these. If "
            "it shows fluorescence, pass the H&E as `image_key=`",
            key,
            strange,
        )
    if seen := _unlike_he(he, grid, measurement, pitch_um):
        logger.warning(
            "images/%s: %s, as in fluorescence and not in H&E. It adds little to the maps; pass the H&E as "
            "`image_key=`",
            key,
            seen,
        )


def _unlike_he(he: np.ndarray, grid: Grid, measurement: Measurement, pitch_um: float) -> str:
    """Describe what is untypical of H&E, or return ""; black padding is not counted as background."""
    rgb = bin_colours(he, grid)
    light, covered = rgb.mean(0), measurement.coverage > 0
    if np.ptp(light) < FLAT or not covered.any():
        return ""
    beside = light[(light > 0) & ~near_spots(grid, measurement, 1.5 * pitch_um / grid.bin_um)]
    under, ground = float(np.median(light[covered])), float(np.median(beside)) if len(beside) >= ENOUGH else 1.0
    if under < DARK:
        return f"most spots are on dark areas ({under:.0%} of white)"
    if ground < min(DARK, under):
        return f"it is dark outside the spots ({ground:.0%} of white, and {under:.0%} under spots)"
    if np.median((rgb[0] - rgb[1])[covered]) < GREEN:
        return "it is more green than red under most spots"
    return ""
