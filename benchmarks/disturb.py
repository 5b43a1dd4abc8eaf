"""Perturbations that real sections suffer: ``Observation -> Observation``, the same every time.

A perturbation of strength zero gives back identical arrays. Only what is perturbed changes: an image that moves leaves
counts, spots and ``inside`` where they are. A grey and an upside-down image are controls, in :mod:`switches`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from hadmst_sc.section.observation import Observation

MOST_OFF = 0.2  # root mean squared distance of spots from their places, in steps; of points at random it is 0.41
# Two laboratories as (haematoxylin, eosin) in optical density of (R, G, B), unit length: Ruifrok & Johnston 2001, and
# the reference stains of Macenko et al. 2009.
STAINS_HERE = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]])
STAINS_THERE = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]])
# More haematoxylin, less eosin (staining times), and a warmer, darker background (lamp, mountant). By about as
# much as strong augmentation draws at most, Tellez et al. 2019.
_DYE_THERE = np.array([1.3, 0.75])
BACKGROUND_THERE = np.array([0.97, 0.94, 0.90])


def shift_image(obs: Observation, um: float, angle_deg: float = 30.0) -> Observation:
    """The image moved by ``um`` µm towards ``angle_deg`` (from +x to +y); its edge fills what is uncovered.

    The default direction is no axis of the grid nor of a lattice of spots. Moves of a fraction of a pixel are cubic
    splines, which blur less than lines and not at all at whole pixels.
    """
    if um == 0:
        return obs
    px = um / _um_per_px(obs) * np.array([np.sin(np.radians(angle_deg)), np.cos(np.radians(angle_deg))])
    return _with_image(obs, [ndimage.shift(plane, px, order=3, mode="nearest") for plane in obs.he.astype(float)])


def warp_image(obs: Observation, um: float, length_um: float = 400.0, seed: int = 0) -> Observation:
    """The image bent: smooth displacements of ``um`` µm root mean square, that change over ``length_um``."""
    if um == 0:
        return obs
    px = _um_per_px(obs)
    noise = np.random.default_rng(seed).standard_normal((2, *obs.he.shape[1:]))
    field = ndimage.gaussian_filter(noise, (0, length_um / px / 2, length_um / px / 2), mode="reflect")
    field *= um / px / np.sqrt((field**2).sum(0).mean())
    places = np.indices(obs.he.shape[1:]) + field
    moved = [ndimage.map_coordinates(plane, places, order=1, mode="nearest") for plane in obs.he.astype(float)]
    return _with_image(obs, moved)


def thin_counts(obs: Observation, share: float, seed: int = 0) -> Observation:
    """Each molecule kept with probability ``share``, as if sequenced less deeply; 1 keeps all."""
    if not 0 <= share <= 1:
        raise ValueError(f"`share` needs to be from 0 to 1, but is {share:g}. It is the share of molecules kept.")
    if (obs.counts != np.round(obs.counts)).any():
        raise ValueError("`obs.counts` need to be whole numbers, but are not. Molecules are kept or lost.")
    kept = np.random.default_rng(seed).binomial(obs.counts.astype(np.int64), share)
    return replace(obs, counts=kept.astype(obs.counts.dtype))


def blur_image(obs: Observation, sigma_um: float) -> Observation:
    """The image through a Gaussian of ``sigma_um`` µm, as out of focus; ``he_um`` stays, as a file would not know."""
    if sigma_um == 0:
        return obs
    sigma = sigma_um / _um_per_px(obs)
    return _with_image(obs, [ndimage.gaussian_filter(p, sigma, mode="nearest") for p in obs.he.astype(float)])


def shift_stain(obs: Observation, strength: float) -> Observation:
    """The image as if stained and scanned in another laboratory: 0 the same, 1 a strong but realistic change.

    Optical density, against the image's own background, is unmixed into haematoxylin, eosin and a rest; dyes get other
    amounts and other colours, and the background gets the tint of another lamp. In between, colours and logarithms of
    amounts go along a line.
    """
    if strength == 0:
        return obs
    pixels = np.maximum(obs.he.reshape(3, -1).T.astype(float), 1.0)  # black has no optical density
    # Underexposed glass is grey: against white it would count as dye. Not the maximum, which is one hot pixel.
    background = np.percentile(pixels, 99, axis=0)
    amounts = -np.log(pixels / background) @ np.linalg.inv(_with_rest(STAINS_HERE))
    amounts[:, :2] *= _DYE_THERE**strength
    colours = _with_rest(STAINS_HERE + strength * (STAINS_THERE - STAINS_HERE))
    density = amounts @ colours - strength * np.log(BACKGROUND_THERE)
    return _with_image(obs, (background * np.exp(-density)).T.reshape(obs.he.shape))


def widen_pitch(obs: Observation, factor: float = 2) -> Observation:
    """Every ``factor``-th spot in both directions: the same kind of lattice at ``factor`` times the pitch.

    Of the sublattices the one with the most spots is kept, of equals the first. Footprints keep their size.
    """
    if factor < 1 or factor != int(factor):
        raise ValueError(f"`factor` needs to be a whole number from 1 on, but is {factor:g}. Every n-th spot is kept.")
    if factor == 1:
        return obs
    n = int(factor)
    phase = lattice_index(obs.measurement.centres) % n @ [n, 1]
    found = obs.subset_spots(phase == np.bincount(phase).argmax())
    pitch_um = obs.source and obs.source.pitch_um
    return found if not pitch_um else replace(found, source=replace(obs.source, pitch_um=pitch_um * n))


def lattice_index(centres: np.ndarray) -> np.ndarray:
    """Position on the lattice along two primitive vectors, ``(spots, 2)`` int, from centres ``(spots, 2)``.

    Any lattice whose shortest vectors are 60° or 90° apart, turned, stretched or bent a little as images are, with
    spots missing or off their place. Neighbours are followed from spot to spot, so that no error in the vectors adds up
    over the section, then all spots are fitted together.
    """
    tree = cKDTree(centres)
    pitch = np.median(tree.query(centres, k=2)[0][:, 1])
    pairs = tree.query_pairs(1.25 * pitch, output_type="ndarray")  # a square's diagonal is 1.41
    if len(pairs) == 0:
        raise ValueError("`centres` need neighbours to tell a lattice from, but no spot has any.")
    steps = centres[pairs[:, 1]] - centres[pairs[:, 0]]
    to_index = np.linalg.inv(_primitive(steps))
    graph = sparse.coo_array((np.ones(len(pairs)), pairs.T), (len(centres),) * 2).tocsr()
    _, piece = csgraph.connected_components(graph, directed=False)
    index = np.zeros((len(centres), 2), int)
    for first in np.unique(piece, return_index=True)[1]:
        spots, before = csgraph.breadth_first_order(graph, first, directed=False)
        for spot in spots[1:]:
            step = centres[spot] - centres[before[spot]]
            index[spot] = index[before[spot]] + np.rint(step @ to_index).astype(int)

    # From the largest piece to the others, which hang on no neighbour, and to spots that were reached the wrong way.
    # An affine map does for nearly all sections, and reaches farthest; spots laid on a neighbouring section are bent.
    largest = piece == np.bincount(piece).argmax()
    for degree in (1, 2, 3):
        terms = _polynomials(centres, degree)
        found, fitted = index, largest
        for _ in range(5):
            place = terms @ np.linalg.lstsq(terms[fitted], found[fitted], rcond=None)[0]
            found, fitted = np.rint(place).astype(int), np.ones(len(centres), bool)
        off = np.sqrt(((place - found) ** 2).sum(1).mean())
        if off < MOST_OFF and len(np.unique(found, axis=0)) == len(found):
            return found - found.min(0)
    raise ValueError(f"`centres` need to lie on a lattice, but are off by {off:.2f} of its steps, or two in one place.")


def _polynomials(centres: np.ndarray, degree: int) -> np.ndarray:
    """``(spots, terms)`` all products of coordinates up to ``degree``, of coordinates within about ±1."""
    y, x = ((centres - centres.mean(0)) / np.abs(centres - centres.mean(0)).max()).T
    return np.stack([y**i * x**j for i in range(degree + 1) for j in range(degree + 1 - i)], 1)


def _primitive(steps: np.ndarray) -> np.ndarray:
    """Two primitive vectors ``(2, 2)`` from steps between neighbours ``(n, 2)`` in all directions of the lattice."""
    angle = np.arctan2(steps[:, 0], steps[:, 1])
    # Directions repeat every 60° or every 90°: under which do they agree?
    order = max((6, 4), key=lambda n: abs(np.exp(1j * n * angle).mean()))
    turn = np.angle(np.exp(1j * order * angle).mean()) / order
    sector = np.rint((angle - turn) / (2 * np.pi / order)).astype(int) % order
    # A step and its opposite are one direction; the mean of each is its vector, stretched as the image is.
    signed = np.where(sector < order // 2, 1, -1)[:, None] * steps
    directions = [signed[sector % (order // 2) == k] for k in range(2)]
    if not all(map(len, directions)):
        raise ValueError("`centres` need neighbours in two directions to tell a lattice from, but have them in one.")
    return np.array([direction.mean(0) for direction in directions])


def _um_per_px(obs: Observation) -> float:
    return obs.grid.bin_um / obs.he_per_bin


def _with_image(obs: Observation, he: np.ndarray | list[np.ndarray]) -> Observation:
    return replace(obs, he=np.clip(np.rint(he), 0, 255).astype(np.uint8))


def _with_rest(stains: np.ndarray) -> np.ndarray:
    """``(3, 3)`` of unit length: the two dyes and what is in neither, at right angles to both."""
    stains = stains / np.linalg.norm(stains, axis=1, keepdims=True)
    rest = np.cross(*stains)
    return np.vstack([stains, rest / np.linalg.norm(rest)])


# By the names that tables of settings use; each value says its unit.
DISTURBANCES: dict[str, Callable[[Observation, float], Observation]] = {
    "misregistration_um": shift_image,
    "warp_um": warp_image,
    "counts_share": thin_counts,
    "blur_um": blur_image,
    "stain": shift_stain,
    "pitch_factor": widen_pitch,
}
