"""Positions of a result in µm and in pixels of the H&E that the run read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hadmst_sc.io.resample import thumbnail
from hadmst_sc.io.resolve import affine, systems
from hadmst_sc.io.result import Result, again
from hadmst_sc.section.errors import MissingKeyError, logger


def warn_beside_image(result: Result) -> None:
    """Warn if registration found the H&E off its spots, so that a result does not lie on what is drawn on the H&E."""
    record = result.provenance
    found = record.get("registration")
    if record.get("align") == "spots" or not isinstance(found, Mapping) or not found.get("applied"):
        return
    down, right, turned = (float(found.get(name, 0)) for name in ("dy_um", "dx_um", "rotation_deg"))
    if np.hypot(down, right) < float(record["bin_um"]) / 2 and not turned:
        return
    logger.warning(
        "registration found the H&E off its spots by %.0f µm down, %.0f µm right and %.1f°, and %r lies on the spots: "
        "what was drawn or segmented on the H&E does not lie on it. %s",
        *(down, right, turned, result.key, again(result, align="spots")),
    )


def systems_of(result: Result) -> list[str]:
    """Coordinate systems in which elements may lie on a result, that of its run first."""
    return [result.system, *systems(result.sdata.labels[result.region])]


@dataclass(frozen=True, eq=False)
class Frame:
    """Positions of a result in µm from the corner of the H&E that the run read.

    Parameters
    ----------
    corner
        (x, y) of the labels on the grid of the run, in bins; not zero after a crop.
    bin_um, um_per_px
        Edge of a bin and of a pixel of the H&E.
    """

    result: Result
    corner: np.ndarray
    bin_um: float
    um_per_px: float

    @classmethod
    def of(cls, result: Result) -> Frame:
        """Frame of a result, from the places of its bins on the grid of the run.

        Raises
        ------
        KeyError
            If the table has lost them or the record of the run, or they contradict the labels.
        """
        record, obs, (rows, y, x) = result.provenance, result.table.obs, result.places
        if {"array_row", "array_col"} <= set(obs) and len(rows):
            corner = obs[["array_col", "array_row"]].to_numpy()[rows] - np.c_[x, y]
            if (corner == corner[0]).all():
                return cls(result, corner[0], float(record["bin_um"]), float(record["um_per_px"]))
        raise MissingKeyError(
            f"tables/{result.table_key}: `obs` needs the places of the bins on the grid of the run, 'array_row' and "
            f"'array_col', but they are missing, or no longer match labels/{result.region}. {again(result)}"
        )

    def xy_um(self) -> np.ndarray:
        """Centres of the bins, ``(bins, 2)``, in the order of ``result.places``."""
        _, y, x = self.result.places
        return (np.c_[x, y] + self.corner + 0.5) * self.bin_um

    def to_um(self, element: Any = None, name: str = "") -> np.ndarray:
        """Return the ``(3, 3)`` affine on (x, y, 1) from an element, or from the system of the result, to µm."""
        system = self.result.system
        if element is not None:
            shared = systems_of(self.result)
            found = [one for one in shared if one in systems(element)]
            if not found:
                raise MissingKeyError(
                    f"{name!r} shares no coordinate system with labels/{self.result.region}: it has "
                    f"{list(systems(element))}, the labels have {shared[1:]}. Call `spatialdata.transformations."
                    f"set_transformation(sdata[{name!r}], transformation, {system!r})`."
                )
            system = found[0]
        bins_to_um = np.diag([self.bin_um, self.bin_um, 1.0])
        bins_to_um[:2, 2] = self.corner * self.bin_um
        own = np.eye(3) if element is None else affine(element, system)
        return np.asarray(bins_to_um @ np.linalg.inv(self.result.to_system(system)) @ own)

    def library(self) -> dict[str, Any]:
        """Return the ``uns["spatial"]`` from which squidpy and scanpy plot: bin edge, and the H&E if it is there."""
        record, images = self.result.provenance, self.result.sdata.images
        pictures: dict[str, np.ndarray] = {}
        factors = {"spot_diameter_fullres": self.bin_um, "tissue_hires_scalef": 1.0}
        if (key := self.result.now(str(record["image_key"]), images)) is not None:
            image = images[key]
            pictures["hires"], factors["tissue_hires_scalef"] = thumbnail(image, key, self.to_um(image, key))
        return {str(record["shapes_key"]): {"images": pictures, "scalefactors": factors, "metadata": {}}}
