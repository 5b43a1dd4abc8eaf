"""Does registration find how the H&E lies against the spots? ``python benchmarks/registration.py``.

Each phantom is seen with the image in place; with the image turned by 180°, so that it has nothing to do with the spots
and whatever is applied is chance; moved by a known length; rotated; bent smoothly; and rotated and bent. Real sections
are seen as they are and with known shifts and rotations added to whatever they have; where every cell of a section is
known, the cells also show how the image is displaced. Writes
``results/registration.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import chain

import numpy as np
import records
from cases.cells import neighbours, where_known
from frame import Measurement, Record, Row, grouped, introduction, rounded
from scipy import ndimage

from hadmst_sc.alignment.evidence import USUAL
from hadmst_sc.alignment.register import (
    MAX_ERROR_UM,
    MIN_SIGMAS_FIELD,
    Alignment,
    agreement_of_turns,
    align_image,
    doubt,
    estimate_alignment,
)
from hadmst_sc.datasets import available, load
from hadmst_sc.io.read import read_observation
from hadmst_sc.phantom.simulate import HELD_OUT_STYLES, TRAIN_STYLES, Phantom, simulate
from hadmst_sc.section.observation import Observation

FIRST_SEED = 990_000  # neither training (below 100,000) nor the choice of the thresholds drew these
SIZES_UM = (1200.0, 1600.0, 1920.0)  # in turn: few spots tell less
IMPOSED_UM = (20.0, 60.0)
N_GENES = 32
REAL = "real"
IN_PLACE, TURNED, MOVED, AS_IT_IS = "in place", "turned by 180°", "moved 20 to 60 µm", "as it is"
DEFORMED = {
    "rotated 2°": {"rotation_deg": 2.0},
    "rotated 4°": {"rotation_deg": -4.0},
    "bent 15 µm": {"deformation_um": 15.0},
    "rotated 3°, bent 15 µm": {"rotation_deg": 3.0, "deformation_um": 15.0},
}
SECTIONS = ("visium_mouse_brain", "visium_dlpfc_151673", "xenium_breast_visium", *(f"her2st_C{i}" for i in range(2, 7)))
BIN_UM = 20.0
REAL_IMPOSED_UM = ((15.0, 0.0), (30.0, -20.0), (-25.0, 45.0), (0.0, -60.0))
REAL_IMPOSED_DEG = (1.5, -3.0)
N_SHARED = 100  # most abundant genes that spots and cells have in common
FAR_UM = 15.0


def measure(options: argparse.Namespace) -> Record:
    trials = []
    sections = [] if options.no_real else present()
    with ProcessPoolExecutor(options.workers) as processes:
        of_phantoms = processes.map(on_phantom, range(options.phantoms))
        for found in chain(processes.map(on_real_section, sections), of_phantoms):
            trials += found
            print(f"  {found[0]['section']}: {len(found)} trials", flush=True)
    settings = {"n_phantoms": options.phantoms, "first_seed": FIRST_SEED, "usual": USUAL}
    settings |= {"max_error_um": MAX_ERROR_UM, "min_sigmas_field": MIN_SIGMAS_FIELD}
    record = {"settings": settings, "trials": trials}
    return record if options.no_real else record | {"breast_by_cells": by_cells()}


def on_phantom(i: int) -> list[Row]:
    """All trials on a phantom; styles and sizes in turn."""
    styles = (*TRAIN_STYLES, *HELD_OUT_STYLES)
    seed, rng = FIRST_SEED + i, np.random.default_rng(FIRST_SEED + i)
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(*IMPOSED_UM)
    shape = {"size_um": SIZES_UM[i % len(SIZES_UM)], "n_genes": N_GENES, "style": styles[i % len(styles)]}

    def drawn(dy_um: float = 0.0, dx_um: float = 0.0, **deformed: float) -> Phantom:
        # A shift has a random stream of its own: all else stays as it was.
        return simulate(seed, misregistration_um=(dy_um, dx_um), **shape, **deformed)

    straight = drawn()
    about = (f"{straight.style} {seed}", straight.clarity)
    turned = replace(straight.observation, he=np.ascontiguousarray(straight.observation.he[:, ::-1, ::-1]))
    seen = {MOVED: drawn(length * np.sin(angle), length * np.cos(angle))}
    seen |= {case: drawn(**imposed) for case, imposed in DEFORMED.items()}
    still = {IN_PLACE: straight.observation, TURNED: turned}
    trials = [trial(*about, case, one, at_spots(straight)) for case, one in still.items()]
    return trials + [trial(*about, case, one.observation, at_spots(one)) for case, one in seen.items()]


def at_spots(phantom: Phantom) -> np.ndarray:
    """True displacement under the spots, ``(spots, 2)`` µm."""
    y, x = phantom.observation.measurement.centres.astype(int).T
    return phantom.displacement_um[:, y, x].T


def present() -> list[str]:
    """Names of the sections that are in the data folder."""
    try:
        found = available()
    except FileNotFoundError as error:
        print(f"  no real sections: {error}")
        return []
    for name in set(SECTIONS) - set(found):
        print(f"  {name} is not in the data folder")
    return [name for name in SECTIONS if name in found]


def on_real_section(name: str) -> list[Row]:
    """A section as it is, and with shifts and rotations imposed."""
    obs = read_observation(load(name), f"{name}_full_image", genes=200, bin_um=BIN_UM)
    centres_um = obs.measurement.centres * BIN_UM
    # Nobody knows how the section lies itself: errors are relative to what is found for it.
    there = centres_um + estimate_alignment(obs).displacement_um(centres_um)
    middle = centres_um.mean(0)
    still = Alignment(0.0, 0.0, 0.0, 0.0, True, centre_um=(float(middle[0]), float(middle[1])))
    cases = {f"moved ({dy:g}, {dx:g}) µm": replace(still, dy_um=dy, dx_um=dx) for dy, dx in REAL_IMPOSED_UM}
    cases |= {f"rotated {deg:g}°": replace(still, rotation_deg=deg) for deg in REAL_IMPOSED_DEG}
    trials = [trial(name, REAL, AS_IT_IS, obs, np.zeros_like(centres_um))]
    for case, add in cases.items():
        inverse = replace(add, dy_um=-add.dy_um, dx_um=-add.dx_um, rotation_deg=-add.rotation_deg)
        imposed = there + add.displacement_um(there) - centres_um
        trials.append(trial(name, REAL, case, align_image(obs, inverse), imposed))
    return trials


def by_cells() -> dict[str, float] | None:
    """Position of the image of the breast crop as its cells tell it: counts of the same genes in place of the H&E.

    The cells are those of the section that the image is of; the spots are of its neighbour and were laid on it.
    """
    try:
        obs, counted, cells = neighbours(N_SHARED, BIN_UM)
    except FileNotFoundError:
        return None
    # Away from the border of the window in which cells are known, else moved footprints would see what is not there.
    inner = ndimage.binary_erosion(where_known(obs, cells), iterations=round(100 / BIN_UM))
    obs = obs.subset_spots(inner[tuple(obs.measurement.centres.astype(int).T)])
    maps = ndimage.gaussian_filter(np.log1p(counted.astype(np.float32)), (0, 1, 1))
    maps = (maps - maps.mean((1, 2), keepdims=True)) / maps.std((1, 2), keepdims=True)
    by_image, by_cells = estimate_alignment(obs), estimate_alignment(obs, he=maps)
    image, cells_um = (one.displacement_um(obs.measurement.centres * BIN_UM) for one in (by_image, by_cells))
    return {
        "n_spots": len(obs.spots),
        "rotation_deg_by_cells": round(by_cells.rotation_deg, 2),
        "rotation_deg_by_image": round(by_image.rotation_deg, 2),
        "displaced_um_by_cells": round(float(np.hypot(*cells_um.T).mean()), 1),
        "left_um_by_image": round(float(np.hypot(*(cells_um - image).T).mean()), 1),
    }


def trial(section: str, group: str, case: str, obs: Observation, imposed: np.ndarray) -> Row:
    """One estimate, against the displacement ``(spots, 2)`` µm that was imposed.

    Lengths are means over the spots: of what was imposed, and of its distance to what is found. ``group`` is how much
    the H&E of a phantom tells, or ``REAL``; ``flagged``, whether `pp.validate` warns of how the image lies.
    """
    started = time.perf_counter()
    found = estimate_alignment(obs)
    seconds = time.perf_counter() - started
    left = imposed - found.displacement_um(obs.measurement.centres * obs.grid.bin_um)
    before, after = (float(np.hypot(*one.T).mean()) for one in (imposed, left))
    keys = ("dy_um", "dx_um", "rotation_deg", "score_here", "score_there", "log_odds", "log_odds_rotation", "error_um")
    stages = {"shift": found.dy_um or found.dx_um, "rotation": found.rotation_deg, "field": found.field is not None}
    record = {"stages": [name for name, applied in stages.items() if applied]}
    record |= rounded({key: getattr(found, key) for key in keys}, 4)
    record["sigmas"] = [round(one, 2) for one in found.sigmas]
    place = {"section": section, "group": group, "case": case, "n_spots": len(obs.spots)}
    lengths = {"imposed_um": before, "error_um": after, "seconds": seconds}
    lengths["shift_um"] = float(np.hypot(found.dy_um, found.dx_um))
    flagged = doubt(agreement_of_turns(obs), found) is not None
    return place | rounded(lengths, 2) | {"found": record, "flagged": flagged}


def render(record: Record) -> str:
    """The Markdown page of a record."""
    settings, trials = record["settings"], record["trials"]
    phantoms = [t for t in trials if t["group"] != REAL]
    parts = ["# Registration of H&E and spots", introduction("registration", settings), _by_case(phantoms)]
    if len(phantoms) < len(trials):
        real = [t for t in trials if t["group"] == REAL]
        asked = records.table(["figure", "asked", "measured"], figures(real, record["breast_by_cells"]))
        parts += ["## Real sections", asked, _each(real)]
    return records.page(record, *parts)


def figures(real: list[Row], breast: dict | None) -> list[list[str]]:
    """Figures that are asked for beside those measured, on real sections."""
    imposed = [t for t in real if t["case"] != AS_IT_IS]
    sure, doubted = ([t for t in imposed if t["flagged"] is flagged] for flagged in (False, True))
    rows = []
    for title, some in (("not flagged by `pp.validate`", sure), ("flagged", doubted)):
        if some:
            errors = [t["error_um"] for t in some]
            before = np.median([t["imposed_um"] for t in some])
            found = f"{before:.1f} → {np.median(errors):.1f} µm in {len(some)} of {len(imposed)} trials"
            asked = "≤ 10 µm" if some is sure else ""
            rows.append([f"median error of what was imposed, {title}", asked, found])
    missed = sum(t["error_um"] > FAR_UM for t in sure)
    rows.append([f"errors above {FAR_UM:g} µm that are not flagged", "none", f"{missed} of {len(imposed)}"])
    stated, true = _stated_and_true(imposed)
    rows.append(["error to be expected over error, root mean squares", "1", f"{stated / true:.2f}"])
    moved = [t["shift_um"] for t in real if t["case"] == AS_IT_IS]
    found = f"largest {max(moved):.1f} µm, in {sum(one > 0 for one in moved)} of {len(moved)} sections"
    rows.append(["shift applied to a section as it is (nobody knows how it lies)", f"none > {FAR_UM:g} µm", found])
    if breast:
        found = (
            f"rotated {breast['rotation_deg_by_cells']:g}°, by the H&E {breast['rotation_deg_by_image']:g}°; "
            f"displaced by {breast['displaced_um_by_cells']:g} µm, of which what the H&E tells leaves "
            f"{breast['left_um_by_image']:g} µm"
        )
        rows.append([f"breast as it is, by its cells ({breast['n_spots']} spots)", "", found])
    return rows


def _stated_and_true(trials: list[Row]) -> tuple[float, float]:
    """Root mean squares of the error to be expected, and of the error."""
    both = np.array([[t["found"]["error_um"], t["error_um"]] for t in trials])
    stated, true = np.sqrt((both**2).mean(0))
    return float(stated), float(true)


def _by_case(trials: list[Row]) -> str:
    rows = []
    for (case,), of_case in grouped(trials, "case").items():
        groups = {group: own for (group,), own in sorted(grouped(of_case, "group").items())}
        for group, chosen in (groups | {"all": of_case}).items():
            applied = [t for t in chosen if t["found"]["stages"]]
            counts = [sum(name in t["found"]["stages"] for t in chosen) for name in ("shift", "rotation", "field")]
            sure = [t for t in chosen if not t["flagged"]]
            numbers = [_change(applied), _change(chosen), f"{len(sure)}: {_change(sure)}"]
            stated = "{:.1f} / {:.1f}".format(*_stated_and_true(chosen))
            rows.append([case, group, f"{len(applied)} of {len(chosen)}", *map(str, counts), *numbers, stated])
    columns = "image H&E applied shift rotation field where_applied over_all not_flagged stated"
    return records.table([name.replace("_", " ") for name in columns.split()], rows)


def _change(trials: list[Row]) -> str:
    if not trials:
        return "–"
    before, after = (np.mean([t[key] for t in trials]) for key in ("imposed_um", "error_um"))
    return f"{before:.1f} → {after:.1f}"


def _each(trials: list[Row]) -> str:
    rows = []
    for t in trials:
        found = t["found"]
        what = f"({found['dy_um']:.1f}, {found['dx_um']:.1f}), {found['rotation_deg']:.2f}°"
        what += ", field" if "field" in found["stages"] else ""
        row = {
            "section": t["section"],
            "spots": t["n_spots"],
            "image": t["case"],
            "found, µm": what if found["stages"] else "none",
            "error, µm": "–" if t["case"] == AS_IT_IS else f"{t['imposed_um']:.1f} → {t['error_um']:.1f}",
            "R² here → there": f"{found['score_here']:.3f} → {found['score_there']:.3f}",
            "stated error, µm": f"{found['error_um']:.1f}",
            "log odds of shift, rotation": f"{found['log_odds']:.1f}, {found['log_odds_rotation']:.1f}",
            "standard errors of a field": ", ".join(f"{one:.1f}" for one in found["sigmas"][2:]),
            "flagged": "yes" if t["flagged"] else "no",
            "seconds": f"{t['seconds']:.1f}",
        }
        rows.append(row)
    return records.table(list(rows[0]), [list(row.values()) for row in rows])


REGISTRATION = Measurement("registration", __doc__, measure, render, weights=None)

if __name__ == "__main__":
    REGISTRATION.main()
