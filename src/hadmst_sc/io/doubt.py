"""Signs that an image is no H&E: fluorescence, a phase image, or channels that are no colours."""

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

# Set by the public sections of the data folder and 30 phantoms: under their spots the median brightness is at least
# 0.29 (on real sections 0.39), and the median of red minus green at least 0.015.
DARK = 0.25
GREEN = -0.03  # red minus green: haematoxylin and eosin take more green than red from the light
FLAT = 0.02  # range of the brightness below which an image shows nothing
ENOUGH = 30  # bins


def warn_of_doubts(image: Any, key: str, he: np.ndarray, grid: Grid, measurement: Measurement, pitch_um: float) -> None:
    """Log a warning where channels have other names than colours, or tissue does not look as in H&E.

    Parameters
    ----------
    he
        ``(3, ny * k, nx * k)`` uint8, as read from ``image``.
    """
    strange = find_channels(levels(image)[0]).strange
    if strange:
        logger.warning(
            "images/%s: its channels are called %s, not red, green and blue; the first three are taken for these. If "
            "it shows fluorescence, pass the H&E as `image_key=`",
            key,
            strange,
        )
    if seen := _unlike_he(he, grid, measurement, pitch_um):
        logger.warning(
            "images/%s: %s, as in fluorescence and not in H&E. The maps can take little from it; pass the H&E as "
            "`image_key=`",
            key,
            seen,
        )


def _unlike_he(he: np.ndarray, grid: Grid, measurement: Measurement, pitch_um: float) -> str:
    """In words, what no H&E shows; black padding, without any light, is no ground."""
    rgb = bin_colours(he, grid)
    light, covered = rgb.mean(0), measurement.coverage > 0
    if np.ptp(light) < FLAT or not covered.any():
        return ""
    beside = light[(light > 0) & ~near_spots(grid, measurement, 1.5 * pitch_um / grid.bin_um)]
    under, ground = float(np.median(light[covered])), float(np.median(beside)) if len(beside) >= ENOUGH else 1.0
    if under < DARK:
        return f"most spots lie where it is dark ({under:.0%} of white)"
    if ground < min(DARK, under):
        return f"it is dark where there is no spot ({ground:.0%} of white, and {under:.0%} under spots)"
    if np.median((rgb[0] - rgb[1])[covered]) < GREEN:
        return "it is more green than red under most spots"
    return ""
