"""Beads: do maps carry the lattice of the spots? ``python benchmarks/beads.py``.

A spot that counted a rare gene by chance becomes a lone hot spot, a bead, in a map that trusts it too much. Two numbers
per gene, for genes with less than one count per spot. First, the share of the local maxima of a map that lie under
spots, minus the share of the tissue that does: 0 if maxima do not know where spots are. Second, the power of the map at
the frequency of the lattice over that in other directions of the same wavelength: 1 if the map does not know the
lattice. Where the truth is known, its own numbers are told too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import plan
import records
from anndata import AnnData
from frame import Measurement, Record, Row, grouped, rounded, shown
from methods import method
from scipy.ndimage import maximum_filter
from scipy.signal import find_peaks

from hadmst_sc.datasets.public import load, observe, observe_cells
from hadmst_sc.section.observation import Observation

METHODS = (
    "kriging, log, soft",
    "GP on H&E + space, log, soft",
    "extra trees + kriging, log, soft",
    "ours, closed form",
    "ours",
)
TRUTH = "truth, the other half of the molecules"
N_GENES = 64  # evenly spaced over the genes below one count per spot
COUNTS = (0.1, 1.0)  # per spot
BIN_UM = 20.0
N_DIRECTIONS = 720  # half a turn in steps of a quarter of a degree
SIMULATED = ("xenium_breast_crop", "xenium_mouse_brain")
ABOUT = str(__doc__).split("\n\n", 1)[1].strip()


def maxima_under_spots(maps: np.ndarray, inside: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Share of the local maxima that lie in bins mostly under a spot, minus the share of such bins, ``(genes,)``.

    A bin is a local maximum if no bin in the square of three by three around it is higher, and one is lower.
    """
    under = coverage >= 0.5
    found = []
    for one in maps:
        kept = np.where(inside, one, -np.inf)
        highest = maximum_filter(kept, 3, mode="constant", cval=-np.inf)
        lowest = -maximum_filter(np.where(inside, -one, -np.inf), 3, mode="constant", cval=-np.inf)
        peaks = inside & (kept == highest) & (lowest < kept)
        found.append(under[peaks].mean() - under[inside].mean() if peaks.any() else np.nan)
    return np.array(found)


def lattice_power(maps: np.ndarray, inside: np.ndarray, centres: np.ndarray, pitch: float) -> np.ndarray:
    """Power of maps at the first frequencies of the lattice over their median power in other directions, ``(genes,)``.

    ``centres`` ``(spots, 2)`` and ``pitch`` in bins. The directions are those in which the spots themselves repeat.
    """
    angle = np.pi * np.arange(N_DIRECTIONS) / N_DIRECTIONS
    # Rows of a square lattice are a pitch apart, those of a triangular one sqrt(3) / 2 pitches.
    rings = [k / pitch * np.stack([np.sin(angle), np.cos(angle)]) for k in (1.0, 2 / np.sqrt(3))]
    repeats = [np.abs(np.exp(-2j * np.pi * (centres @ ring)).mean(0)) ** 2 for ring in rings]
    ring, repeat = max(zip(rings, repeats, strict=True), key=lambda one: one[1].max())
    peaks, _ = find_peaks(np.r_[repeat, repeat[:20]], height=repeat.max() / 2, distance=N_DIRECTIONS // 12)
    peaks = np.unique(peaks % N_DIRECTIONS)
    yx = np.argwhere(inside).astype(float)
    values = maps[:, inside] - maps[:, inside].mean(1, keepdims=True)
    power = np.zeros((len(maps), N_DIRECTIONS))
    for block in np.array_split(np.arange(N_DIRECTIONS), 12):
        phase = 2 * np.pi * (yx @ ring[:, block])
        power[:, block] = (values @ np.cos(phase)) ** 2 + (values @ np.sin(phase)) ** 2
    apart = np.abs((np.arange(N_DIRECTIONS)[:, None] - peaks + N_DIRECTIONS // 2) % N_DIRECTIONS - N_DIRECTIONS // 2)
    others = (apart > N_DIRECTIONS // 36).all(1)  # five degrees and more away
    return power[:, peaks].mean(1) / np.maximum(np.median(power[:, others], axis=1), 1e-300)


def rare(table: AnnData) -> list[str]:
    """Names of at most ``N_GENES`` genes between ``COUNTS`` per spot, evenly spaced by their mean."""
    mean = np.asarray(table.X.mean(0)).ravel()
    chosen = np.flatnonzero((mean >= COUNTS[0]) & (mean < COUNTS[1]))
    chosen = chosen[np.argsort(-mean[chosen], kind="stable")]
    return table.var_names[
        chosen[np.linspace(0, len(chosen) - 1, min(N_GENES, len(chosen))).round().astype(int)]
    ].tolist()


def read(section: str) -> tuple[Observation, np.ndarray | None]:
    """A section with its rare genes, and their true maps where molecules are known."""
    if section in SIMULATED:
        obs, truth, _ = observe_cells(section, choose=rare, bin_um=BIN_UM, spot_um=55.0, pitch_um=100.0)
        return obs, truth
    return observe(section, genes=rare(load(section).tables["table"]), bin_um=BIN_UM), None


def rows_of(section: str) -> Iterator[Row]:
    """Two numbers per method, means over genes."""
    obs, truth = read(section)
    weights = str(plan.weights_of(section))
    made = {} if truth is None else {TRUTH: truth}
    for name in (*made, *METHODS):
        maps = made.get(name)
        if maps is None:
            maps = np.asarray(method(name, weights)(obs).mean)
        coverage, centres = obs.measurement.coverage, obs.measurement.centres
        of_maxima = maxima_under_spots(maps, obs.inside, coverage)
        of_lattice = lattice_power(maps, obs.inside, centres, obs.measurement.pitch)
        found = {"maxima": float(np.nanmean(of_maxima)), "lattice": float(np.exp(np.log(of_lattice).mean()))}
        yield {"section": section, "method": name, "genes": len(maps)} | rounded(found, 4)


def measure(options: argparse.Namespace) -> Record:
    return {"rows": shown(row for section in options.sections for row in rows_of(section))}


def render(found: Record) -> str:
    """The page."""
    tables = []
    for (section,), rows in grouped(found["rows"], "section").items():
        cells = [[row["method"], f"{row['maxima']:+.3f}", f"{row['lattice']:.2f}"] for row in rows]
        head = ["method", "maxima under spots, minus area", "power at the lattice over other directions"]
        tables.append(f"## {section}, {rows[0]['genes']} genes\n\n{records.table(head, cells)}")
    return records.page(
        found, "# Beads: do maps carry the lattice of the spots?", str(__doc__).split("\n\n", 1)[1], *tables
    )


BEADS = Measurement("beads", __doc__, measure, render, weights=None)

if __name__ == "__main__":
    BEADS.main()
