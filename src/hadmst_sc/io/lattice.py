"""Lattice of the spots: distance between neighbours, kind (hexagonal or square) and rotation."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

NEIGHBOUR = 1.25  # pitches; the next ring of a square or hexagonal lattice is 1.41 or 1.73 away
CLEAR = 0.1  # smallest difference between the two bond orders that decides the kind of lattice
ORDERED = 0.5  # smallest bond order of a lattice; 1 without noise, near 0 for random points
N_FITTED = 60  # number of spots to which a sparse lattice is fitted
MIN_FITTED = 10  # fewer points fit some lattice by chance
FIT = 0.8  # structure factor of a lattice that fits; chance reaches it in 1 of 10,000 sections of ten spots


class Lattice(NamedTuple):
    """Lattice estimated from distances and directions of neighbours.

    Parameters
    ----------
    pitch
        Distance between neighbours; NaN for a single spot.
    kind
        ``None`` if neighbours are in one direction only, or equally in all directions.
    angle
        Rotation from x towards y, radians: in ``(-π/4, π/4]`` on a square lattice, in ``(-π/6, π/6]`` on a hexagonal
        one; otherwise 0.
    line
        True if all spots are on one line.
    dense
        True if at least half of the spots have a neighbour.
    """

    pitch: float
    kind: Literal["hexagonal", "square"] | None
    angle: float
    line: bool
    dense: bool


def lattice(xy: np.ndarray) -> Lattice:
    """Estimate the lattice of ``(n, 2)`` points, many of which may be missing.

    The pitch is the median over all neighbours, because the nearest one is biased if positions are noisy: 7 % short on
    hand-placed ST spots. The kind follows the larger of the bond orders ``|mean exp(4iθ)|`` and ``|mean exp(6iθ)|``
    over the directions θ of neighbours, which do not depend on the rotation.
    """
    if len(xy) < 2:
        return Lattice(float("nan"), None, 0.0, line=True, dense=False)
    distance, other = (one[:, 1:] for one in cKDTree(xy).query(xy, k=min(9, len(xy))))
    pitch = np.quantile(distance[:, 0], 0.05)
    for _ in range(4):
        pitch = np.median(distance[distance <= NEIGHBOUR * pitch])
    near = distance <= NEIGHBOUR * pitch
    bonds = (xy[other] - xy[:, None])[near]
    theta = np.arctan2(bonds[:, 1], bonds[:, 0])
    four, six = np.exp(4j * theta).mean(), np.exp(6j * theta).mean()
    kind: Literal["hexagonal", "square"] | None = None
    if abs(abs(four) - abs(six)) > CLEAR and max(abs(four), abs(six)) > ORDERED:
        kind = "square" if abs(four) > abs(six) else "hexagonal"
    spread = np.linalg.svd(xy - xy.mean(0), compute_uv=False)[-1] if len(xy) > 2 else 0.0
    return Lattice(
        float(pitch),
        kind,
        {"square": float(np.angle(four) / 4), "hexagonal": float(np.angle(six) / 6), None: 0.0}[kind],
        line=bool(spread / np.sqrt(len(xy)) < 0.05 * pitch),
        dense=bool(near.any(1).mean() >= 0.5),
    )


def fitted_pitch(xy: np.ndarray, low: float, high: float, kind: Literal["hexagonal", "square"]) -> float | None:
    """Estimate the pitch, between two limits, of a lattice with most spots missing; ``None`` if no lattice fits.

    The estimate has the largest structure factor ``|mean exp(ik·x)|²`` over all rotations, which is 1 for the
    reciprocal vectors ``k`` of a lattice that contains all points.
    """
    if len(xy) < MIN_FITTED:
        return None
    middle = xy[np.argmin(((xy - np.median(xy, 0)) ** 2).sum(1))]
    xy = xy[np.argsort(((xy - middle) ** 2).sum(1))[:N_FITTED]] - middle
    reach = np.sqrt((xy**2).sum(1).max()) / low  # pitches
    fold, length = (3, 4 * np.pi / np.sqrt(3)) if kind == "hexagonal" else (2, 2 * np.pi)
    step = 1 / (length * reach)  # a radian of phase at the farthest spot
    angles = np.arange(0, np.pi / fold, step)
    best = (0.0, low)
    for pitch in np.exp(np.arange(np.log(low), np.log(high) + step, step)):
        turned = angles[:, None] + np.pi / fold * np.arange(fold)
        waves = np.stack([np.cos(turned), np.sin(turned)], -1) * (length / pitch)
        power = (np.abs(np.exp((1j * waves @ xy.T).astype(np.complex64)).mean(-1)) ** 2).mean(1)
        best = max(best, (float(power.max()), float(pitch)))
    return best[1] if best[0] >= FIT else None
