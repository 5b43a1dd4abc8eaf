"""Alignment of the H&E to the spots: translation, rotation and a smooth bounded field, as one small record.

The record describes ``d(p)``: the image shows at ``p + d(p)`` what the spots measured at ``p`` (Eq. 4 of
`docs/concepts/method.md`). Undoing it needs no inverse: the aligned image at ``p`` is the image at ``p + d(p)``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage

from hadmst_sc.section.observation import Observation

STRIP_PX = 256  # rows resampled at a time: coordinates of a whole slide need more memory than the slide


@dataclass(frozen=True)
class Field:
    """A smooth displacement: cubic B-splines on a lattice of control points (Rueckert et al. 1999).

    The splines sum to one, so no displacement along an axis exceeds that of the largest control point.

    Parameters
    ----------
    origin_um
        ``(y, x)`` of the first control point, µm from the corner of the grid.
    step_um
        Distance between control points.
    shape
        Numbers of control points ``(my, mx)``.
    dy_um, dx_um
        ``(my * mx,)`` displacements at the control points, row by row.
    """

    origin_um: tuple[float, float]
    step_um: float
    shape: tuple[int, int]
    dy_um: tuple[float, ...]
    dx_um: tuple[float, ...]

    def weights(self, at_um: np.ndarray, axis: int) -> np.ndarray:
        """Spline weights of coordinates along ``axis``, ``(points, control points)``; rows sum to one."""
        inner = self.origin_um[axis] + self.step_um * np.array([1, self.shape[axis] - 2])
        at = (np.clip(at_um, *inner) - self.origin_um[axis]) / self.step_um  # constant beyond the lattice
        far = np.abs(at[:, None] - np.arange(self.shape[axis]))
        return np.where(far < 1, 2 / 3 - far**2 + far**3 / 2, np.maximum(2 - far, 0) ** 3 / 6)

    def control_um(self) -> np.ndarray:
        """Displacements of the control points, ``(2, my, mx)`` as (dy, dx)."""
        return np.array([self.dy_um, self.dx_um]).reshape(2, *self.shape)


@dataclass(frozen=True)
class Alignment:
    """Displacement of the H&E relative to the spots, with the evidence for it.

    Parameters
    ----------
    dy_um, dx_um
        The translation of ``d``, zero unless applied.
    score_here, score_there
        Leave-one-out R² of the components predicted from the image alone: in place, and at the most probable position,
        applied or not. Both are zero if there is no evidence (too few spots, or an image or counts that do not vary).
    applied
        True if any stage improved the prediction by more than chance.
    rotation_deg
        Rotation about ``centre_um``, from y towards x; zero unless applied.
    centre_um
        ``(y, x)`` of the tissue's centre, µm from the corner of the grid.
    field
        Smooth displacement on top; ``None`` unless applied.
    sigmas
        Gain of each stage over the previous one, in standard errors of the spots' errors: translation; rotation; field
        at held-out spots; field at held-out components.
    n_spots
        Number of spots. Of more than 5,000, translation and rotation use a random 5,000.
    log_odds, log_odds_rotation
        Natural log posterior odds of a translation and of a rotation against none; applied if above zero.
    error_um
        Expected remaining error of the position: root mean square over the spots and over the posterior of translation
        and rotation. Zero if there is no evidence.
    """

    dy_um: float
    dx_um: float
    score_here: float
    score_there: float
    applied: bool
    rotation_deg: float = 0.0
    centre_um: tuple[float, float] = (0.0, 0.0)
    field: Field | None = None
    sigmas: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    n_spots: int = 0
    log_odds: float = 0.0
    log_odds_rotation: float = 0.0
    error_um: float = 0.0

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Alignment:
        """Inverse of ``asdict``; accepts tuples that a store returned as lists or arrays, and ``None`` as a string."""

        def plain(value: Any) -> Any:
            if isinstance(value, Mapping):
                return Field(**{key: plain(one) for key, one in value.items()})
            if isinstance(value, str):
                return plain(json.loads(value.replace("none", "null")))
            if isinstance(value, np.ndarray | np.generic):
                value = value.tolist()
            return tuple(value) if isinstance(value, list) else value

        return cls(**{key: plain(value) for key, value in record.items()})

    @property
    def description(self) -> str:
        """Text that describes what was applied."""
        if not self.applied:
            return "in place: nothing applied"
        shift = f"shift (y {self.dy_um:+.0f}, x {self.dx_um:+.0f}) µm" if self.dy_um or self.dx_um else ""
        turn = f"{self.rotation_deg:+.1f}°" if self.rotation_deg else ""
        return ", ".join(part for part in (shift, turn, "field" if self.field else "") if part)

    @property
    def affine(self) -> np.ndarray:
        """``(3, 3)`` matrix from spot positions ``(y, x, 1)`` in µm to image positions, without ``field``."""
        sin, cos = np.sin(np.radians(self.rotation_deg)), np.cos(np.radians(self.rotation_deg))
        turn = np.array([[cos, -sin], [sin, cos]])
        centre = np.array(self.centre_um)
        return np.block([[turn, (centre - turn @ centre + [self.dy_um, self.dx_um])[:, None]], [np.eye(3)[2]]])

    def displacement_um(self, points_um: np.ndarray) -> np.ndarray:
        """``d`` at ``(points, 2)`` as (y, x) in µm from the corner of the grid, ``(points, 2)`` in µm."""
        points_um = np.asarray(points_um, float)
        moved = points_um @ (self.affine[:2, :2] - np.eye(2)).T + self.affine[:2, 2]
        if self.field is None:
            return moved
        wy, wx = (self.field.weights(points_um[:, axis], axis) for axis in (0, 1))
        return moved + np.einsum("sy,sx,cyx->sc", wy, wx, self.field.control_um(), optimize=True)


def align_image(obs: Observation, found: Alignment) -> Observation:
    """Undo a misregistration by resampling the H&E onto the spots; everything else is unchanged.

    Pixels are interpolated linearly; the image is mirrored at its border.

    Parameters
    ----------
    obs
        The section.
    found
        Result of :func:`~hadmst_sc.alignment.register.estimate_alignment`.
    """
    if not (found.dy_um or found.dx_um or found.rotation_deg or found.field):
        return obs
    px_um = obs.grid.bin_um / obs.he_per_bin
    height, width = obs.he.shape[1:]
    moved = np.empty_like(obs.he)
    for top in range(0, height, STRIP_PX):
        rows = np.arange(top, min(top + STRIP_PX, height))
        where = _displaced(found, (rows + 0.5) * px_um, (np.arange(width) + 0.5) * px_um) / px_um - 0.5
        for channel, plane in enumerate(obs.he):
            strip = ndimage.map_coordinates(plane, where, np.float32, order=1, mode="reflect")
            moved[channel, rows] = np.rint(strip)
    return replace(obs, he=moved)


def align_spots(obs: Observation, found: Alignment) -> Observation:
    """Undo a misregistration by moving the spots onto the image, which is unchanged.

    Results are then in register with the image, not with the spots' positions in ``sdata``.

    Parameters
    ----------
    obs
        The section.
    found
        See :func:`align_image`.
    """
    if not (found.dy_um or found.dx_um or found.rotation_deg or found.field):
        return obs
    um = obs.grid.bin_um
    moved = obs.measurement.moved(found.displacement_um(obs.measurement.centres * um) / um)
    share = moved.area / obs.measurement.area
    kept = share > 0.5  # drop spots that left the grid
    # At the border of the grid, as when a section is read: counts are of the part of a spot that lies on the grid.
    visible = np.where(np.abs(share - 1) > 1e-4, share, 1)[kept, None].astype(np.float32)
    moved, given = moved.subset(kept), obs.subset_spots(kept)
    inside = obs.inside | (moved.coverage > 0)
    return replace(given, measurement=moved, counts=given.counts * visible, inside=inside)


def _displaced(found: Alignment, y_um: np.ndarray, x_um: np.ndarray) -> np.ndarray:
    """``p + d(p)`` on the lattice of ``y_um`` and ``x_um``, ``(2, y, x)`` µm."""
    affine = found.affine
    where = affine[:2, 0, None, None] * y_um[:, None] + affine[:2, 1, None, None] * x_um + affine[:2, 2, None, None]
    if found.field is not None:
        where += found.field.weights(y_um, 0) @ found.field.control_um() @ found.field.weights(x_um, 1).T
    return where
