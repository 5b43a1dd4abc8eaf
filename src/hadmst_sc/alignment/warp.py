"""Rotation and smooth deformation of the H&E relative to the spots, fitted by Gauss-Newton steps.

Both are displacements of the footprints that are linear in a few parameters; the steps are those of
:class:`~hadmst_sc.alignment.evidence.Agreement`. :mod:`hadmst_sc.alignment.register` decides what is applied.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy import sparse

from hadmst_sc.alignment.evidence import Agreement, Basis
from hadmst_sc.alignment.record import Alignment, Field
from hadmst_sc.runtime import side_by_side
from hadmst_sc.section.measurement import spacing

MAX_DEG = 6.0
N_STARTS = 3  # best candidates from which the descent starts
N_ROTATION_STEPS = 8
# Smallest distance between control points. Each has two parameters, and one spot has little information on either; the
# limit in pitches keeps as many spots per control point on coarser arrays as on Visium.
FIELD_STEP_UM = 600.0
FIELD_STEP_PITCHES = 6.0
MAX_FIELD_STEPS = 20  # along the longer side: enough for an 11 mm Visium slide; larger tissue has larger steps
FIELD_SD_UM, MAX_FIELD_UM = 20.0, 30.0  # prior standard deviation and bound of a control point, per axis
N_FIELD_STEPS = 4
N_FOLDS = 5


def find_rotation(section: Agreement, start: Alignment, step_deg: float, max_um: float) -> Alignment:
    """Find the best rotation about the tissue's centre, together with its translation.

    Angles up to ``MAX_DEG`` are tried on a grid; descent starts from the best few and stops when errors no longer fall.

    Parameters
    ----------
    section
        The objective.
    start
        The translation to start from.
    step_deg
        Largest step between the angles that are tried.
    max_um
        Longest translation.

    Returns
    -------
    ``start`` with the best translation and rotation, even if the gain is small.
    """
    centres_um = section.centres_um
    n = max(1, int(np.ceil(MAX_DEG / step_deg)))

    def errors(at: Alignment) -> float:
        return float(section.errors(at.displacement_um(centres_um), rough=True).sum())

    angles = MAX_DEG * np.arange(-n + 1, n) / n  # without the bound: it is not an optimum
    # A translation found at the wrong angle may be wrong itself, so no translation is tried too.
    starts = (start, replace(start, dy_um=0.0, dx_um=0.0))
    tried = [replace(s, rotation_deg=float(a)) for s in starts for a in angles]
    best = np.argsort(side_by_side(errors, tried), kind="stable")[:N_STARTS]  # stable: ties go to the first
    found = side_by_side(lambda one: _descend(section, tried[one], max_um), best)
    return min(found, key=lambda pair: pair[0])[1]


def _descend(section: Agreement, at: Alignment, max_um: float) -> tuple[float, Alignment]:
    """Take steps in translation and rotation, within the bounds, until the errors no longer fall."""
    centres_um = section.centres_um
    everywhere = np.ones(len(centres_um), bool)
    y, x = np.radians(centres_um - at.centre_um).T
    one, none = np.ones(len(centres_um)), np.zeros(len(centres_um))
    basis = Basis(*(sparse.csr_matrix(np.stack(columns, 1)) for columns in ((one, none, -x), (none, one, y))))
    weak = np.diag(np.array([max_um, max_um, MAX_DEG]) ** -2.0)  # keeps steps finite if the image is flat
    least, length = float(section.errors(at.displacement_um(centres_um)).sum()), 1.0
    for _ in range(N_ROTATION_STEPS):
        normal, right = section.step(at.displacement_um(centres_um), basis, everywhere)
        dy, dx, turn = length * np.linalg.solve(normal + weak, right)
        shift = np.array([at.dy_um + dy, at.dx_um + dx])
        shift *= min(1.0, max_um / max(float(np.hypot(*shift)), 1e-12))
        angle = float(np.clip(at.rotation_deg + turn, -MAX_DEG, MAX_DEG))
        there = replace(at, dy_um=float(shift[0]), dx_um=float(shift[1]), rotation_deg=angle)
        total = float(section.errors(there.displacement_um(centres_um)).sum())
        if total < least:
            least, at = total, there
        elif length < 0.2:
            break
        else:
            length /= 2
    return least, at


def find_field(section: Agreement, start: Alignment) -> Field:
    """Find the best smooth displacement on top of ``start``, even if the gain is small.

    Control points have a normal prior of standard deviation ``FIELD_SD_UM`` and are clipped to ±``MAX_FIELD_UM``.
    """
    field, basis = control_points(section.centres_um)
    everywhere = np.ones(len(section.centres_um), bool)
    dy, dx = _control(section, start, basis, everywhere).reshape(2, -1).tolist()
    return replace(field, dy_um=tuple(dy), dx_um=tuple(dx))


def unseen_errors(section: Agreement, start: Alignment) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cross-validated errors ``(spots,)``, with a smooth map, of a field on top of ``start``.

    Returns
    -------
    Three arrays. Errors of each fifth of the spots under a field fitted to the other spots. Errors of each half of the
    components under a field fitted to the other half, and the same without a field. Held-out spots alone are too weak a
    test: expression that the H&E does not show is smooth over the tissue, so a wrong field can improve held-out spots,
    but not components with another pattern.
    """
    basis = control_points(section.centres_um)[1]
    moved = start.displacement_um(section.centres_um)
    everywhere = np.ones(len(moved), bool)
    fold = np.random.default_rng(0).permutation(len(moved)) % N_FOLDS
    odd, even = (section.of_components(slice(first, None, 2)) for first in (0, 1))

    def errors(seen: Agreement, rows: np.ndarray, unseen: Agreement) -> np.ndarray:
        return unseen.errors_beside_map(moved + basis(_control(seen, start, basis, rows)))

    parts = [(section, fold != k, section) for k in range(N_FOLDS)] + [(odd, everywhere, even), (even, everywhere, odd)]
    *of_folds, of_even, of_odd = side_by_side(errors, *zip(*parts, strict=True))
    of_spots = np.choose(fold, of_folds)
    return of_spots, of_even + of_odd, odd.errors_beside_map(moved) + even.errors_beside_map(moved)


def _control(section: Agreement, start: Alignment, basis: Basis, rows: np.ndarray) -> np.ndarray:
    """Displacements of the control points fitted to the spots ``rows``: all along y, then all along x, in µm."""
    moved, prior = start.displacement_um(section.centres_um), np.eye(basis.along_y.shape[1]) / FIELD_SD_UM**2
    at = np.zeros(len(prior))
    for _ in range(N_FIELD_STEPS):
        normal, right = section.step(moved + basis(at), basis, rows)
        at = np.clip(at + np.linalg.solve(normal + prior, right - prior @ at), -MAX_FIELD_UM, MAX_FIELD_UM)
    return at


def control_points(centres_um: np.ndarray) -> tuple[Field, Basis]:
    """Field of zero displacement over the spots, and its basis: all control points along y, then all along x."""
    low, high = centres_um.min(0), centres_um.max(0)
    step = max(FIELD_STEP_UM, FIELD_STEP_PITCHES * spacing(centres_um), float((high - low).max()) / MAX_FIELD_STEPS)
    n = np.maximum(1, np.ceil((high - low) / step)).astype(int)
    origin = (low + high - n * step) / 2 - step  # cubic splines need one more interval on each side
    shape = (int(n[0]) + 3, int(n[1]) + 3)
    rest = (0.0,) * (shape[0] * shape[1])
    field = Field((float(origin[0]), float(origin[1])), step, shape, rest, rest)
    wy, wx = (field.weights(centres_um[:, axis], axis) for axis in (0, 1))
    weights = np.einsum("sy,sx->syx", wy, wx).reshape(len(centres_um), -1)
    none = np.zeros_like(weights)
    return field, Basis(*(sparse.csr_matrix(np.hstack(pair)) for pair in ((weights, none), (none, weights))))
