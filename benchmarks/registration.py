"""Whether it is found how the H&E lies against the spots: ``python benchmarks/registration.py``.

Each phantom is seen with the image in place; with the image turned by 180°, so that it has nothing to do with the spots
and whatever is applied is chance; moved by a known length; rotated; bent smoothly; and rotated and bent. Real sections
are seen as they are and with known shifts and rotations added to whatever they have; where every cell of a section is
known, it is also told by the cells how the image lies. Writes
``results/registration.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import records
from cases import neighbours, where_known
from scipy import ndimage

from hadmst_sc.alignment.posterior import USUAL
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
SECTIONS = (
    "visium_mouse_brain",
    "visium_dlpfc_151673",
    "xenium_breast_visium",
    *(f"her2st_C{i}" for i in range(2, 7)),
)
BIN_UM = 20.0
REAL_IMPOSED_UM = ((15.0, 0.0), (30.0, -20.0), (-25.0, 45.0), (0.0, -60.0))
REAL_IMPOSED_DEG = (1.5, -3.0)
N_SHARED = 100  # most abundant genes that spots and cells have in common
FAR_UM = 15.0


@dataclass(frozen=True)
class Trial:
    """One estimate: what it was given, and what it found."""

    section: str
    group: str  # how much the H&E of a phantom tells; REAL
    case: str
    n_spots: int
    imposed_um: float  # mean length of the displacement over the spots
    found: Alignment
    error_um: float  # mean distance over the spots of the displacement found to the one imposed
    seconds: float
    flagged: bool | None = None  # whether `pp.validate` warns of how the image lies


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=60)
    parser.add_argument("--no-real", action="store_true", help="phantoms only")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--output", type=Path, default=records.RESULTS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    made = records.provenance(weights=None)
    trials = []
    sections = [] if options.no_real else present()
    with ProcessPoolExecutor(options.workers) as processes:
        for found in chain(
            processes.map(on_real_section, sections), processes.map(on_phantom, range(options.phantoms))
        ):
            trials += found
            print(f"  {found[0].section}: {len(found)} trials", flush=True)
    settings = {"n_phantoms": options.phantoms, "first_seed": FIRST_SEED, "usual": USUAL}
    settings |= {"max_error_um": MAX_ERROR_UM, "min_sigmas_field": MIN_SIGMAS_FIELD}
    record = {"provenance": made, "settings": settings, "trials": [plain(trial) for trial in trials]}
    if not options.no_real:
        record["breast_by_cells"] = by_cells()
    records.save("registration", record, render(record), options.output)


def on_phantom(i: int) -> list[Trial]:
    """All trials on a phantom; styles and sizes in turn."""
    styles = (*TRAIN_STYLES, *HELD_OUT_STYLES)
    seed, rng = FIRST_SEED + i, np.random.default_rng(FIRST_SEED + i)
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(*IMPOSED_UM)
    draw = {"size_um": SIZES_UM[i % len(SIZES_UM)], "n_genes": N_GENES, "style": styles[i % len(styles)]}
    straight = simulate(seed, misregistration_um=(0.0, 0.0), **draw)
    # A shift has a random stream of its own: all else stays as it was.
    moved = simulate(seed, misregistration_um=(length * np.sin(angle), length * np.cos(angle)), **draw)
    turned = replace(straight.observation, he=np.ascontiguousarray(straight.observation.he[:, ::-1, ::-1]))
    about = (f"{straight.style} {seed}", straight.clarity)
    trials = [
        trial(*about, IN_PLACE, straight.observation, at_spots(straight)),
        trial(*about, TURNED, turned, at_spots(straight)),
        trial(*about, MOVED, moved.observation, at_spots(moved)),
    ]
    for case, imposed in DEFORMED.items():
        bent = simulate(seed, misregistration_um=(0.0, 0.0), **draw, **imposed)
        trials.append(trial(*about, case, bent.observation, at_spots(bent)))
    return trials


def at_spots(phantom: Phantom) -> np.ndarray:
    """True displacement under the spots, ``(spots, 2)`` µm."""
    y, x = phantom.observation.measurement.centres.astype(int).T
    return phantom.displacement_um[:, y, x].T


def present() -> list[str]:
    """Those of the sections that are in the data folder."""
    try:
        found = available()
    except FileNotFoundError as error:
        print(f"  no real sections: {error}")
        return []
    for name in set(SECTIONS) - set(found):
        print(f"  {name} is not in the data folder")
    return [name for name in SECTIONS if name in found]


def on_real_section(name: str) -> list[Trial]:
    """A section as it is, and with shifts and rotations imposed."""
    obs = read_observation(load(name), f"{name}_full_image", genes=200, bin_um=BIN_UM)
    centres_um = obs.measurement.centres * BIN_UM
    trials = [trial(name, REAL, AS_IT_IS, obs, np.zeros_like(centres_um))]
    # Nobody knows how the section lies itself: errors are relative to what was found for it.
    there = centres_um + trials[0].found.displacement_um(centres_um)
    middle = centres_um.mean(0)
    still = Alignment(0.0, 0.0, 0.0, 0.0, True, centre_um=(float(middle[0]), float(middle[1])))
    cases = {f"moved ({dy:g}, {dx:g}) µm": replace(still, dy_um=dy, dx_um=dx) for dy, dx in REAL_IMPOSED_UM}
    cases |= {f"rotated {deg:g}°": replace(still, rotation_deg=deg) for deg in REAL_IMPOSED_DEG}
    for case, add in cases.items():
        inverse = replace(add, dy_um=-add.dy_um, dx_um=-add.dx_um, rotation_deg=-add.rotation_deg)
        imposed = there + add.displacement_um(there) - centres_um
        trials.append(trial(name, REAL, case, align_image(obs, inverse), imposed))
    return trials


def by_cells() -> dict[str, float] | None:
    """How the image of the breast crop lies, as its cells tell it: counts of the same genes in place of the H&E.

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


def trial(section: str, group: str, case: str, obs: Observation, imposed: np.ndarray) -> Trial:
    """One estimate, against the displacement ``(spots, 2)`` µm that was imposed."""
    started = time.perf_counter()
    found = estimate_alignment(obs)
    seconds = time.perf_counter() - started
    left = imposed - found.displacement_um(obs.measurement.centres * obs.grid.bin_um)
    before, after = (float(np.hypot(*one.T).mean()) for one in (imposed, left))
    flagged = doubt(agreement_of_turns(obs), found) is not None
    return Trial(section, group, case, len(obs.spots), before, found, after, seconds, flagged)


def plain(trial: Trial) -> dict:
    """JSON-ready, rounded to what means something."""
    record, found = asdict(trial), trial.found
    keys = ("dy_um", "dx_um", "rotation_deg", "score_here", "score_there", "log_odds", "log_odds_rotation", "error_um")
    record["found"] = {
        "stages": stages(found),
        **{key: round(getattr(found, key), 4) for key in keys},
        "sigmas": [round(one, 2) for one in found.sigmas],
    }
    record["shift_um"] = round(float(np.hypot(found.dy_um, found.dx_um)), 2)
    return record | {key: round(getattr(trial, key), 2) for key in ("imposed_um", "error_um", "seconds")}


def stages(found: Alignment) -> list[str]:
    """Names of the stages that were applied."""
    moved, turned, bent = bool(found.dy_um or found.dx_um), found.rotation_deg != 0, found.field is not None
    return [name for name, on in (("shift", moved), ("rotation", turned), ("field", bent)) if on]


def render(record: dict) -> str:
    """The Markdown page of a record."""
    settings, trials = record["settings"], record["trials"]
    phantoms = [t for t in trials if t["group"] != REAL]
    parts = [
        "# Registration of H&E and spots",
        f"Before the spots are asked an image is {settings['usual']:g} times as probably in place as shifted, and as "
        "straight as rotated; shift and rotation are applied where the spots make them the more probable, a field from "
        f"{settings['min_sigmas_field']:g} standard errors at spots and metagenes that it was not fitted to, together. "
        "With the image in place, or turned so that it has nothing to do with the spots, whatever is applied is a "
        f"false alarm. `pp.validate` warns where the error to be expected is above {settings['max_error_um']:g} µm, "
        "and where a turned image would tell as much.",
        f"## {settings['n_phantoms']} phantoms, seeds from {settings['first_seed']:,}",
        "By how much the H&E tells. Mean displacement over the spots, µm: before, and what is left of it; over the "
        "sections where something was applied, over all, and over those that are not flagged. Last, root mean squares: "
        "the error to be expected, and the error.",
        _by_case(phantoms),
    ]
    if len(phantoms) < len(trials):
        real = [t for t in trials if t["group"] == REAL]
        asked = records.table(["figure", "asked", "measured"], figures(real, record["breast_by_cells"]))
        parts += ["## Real sections", asked, _each(real)]
    return "\n\n".join([*parts, records.footer(record)])


def figures(real: list[dict], breast: dict | None) -> list[list[str]]:
    """What is asked for beside what was measured, on real sections."""
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
    told, true = _told_and_true(imposed)
    rows.append(["error to be expected over error, root mean squares", "1", f"{told / true:.2f}"])
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


def _told_and_true(trials: list[dict]) -> tuple[float, float]:
    """Root mean squares of the error to be expected, and of the error."""
    both = np.array([[t["found"]["error_um"], t["error_um"]] for t in trials])
    told, true = np.sqrt((both**2).mean(0))
    return float(told), float(true)


def _by_case(trials: list[dict]) -> str:
    rows = []
    for case in dict.fromkeys(t["case"] for t in trials):
        of_case = [t for t in trials if t["case"] == case]
        for group in (*sorted({t["group"] for t in of_case}), "all"):
            chosen = [t for t in of_case if group in ("all", t["group"])]
            applied = [t for t in chosen if t["found"]["stages"]]
            counts = [sum(name in t["found"]["stages"] for t in chosen) for name in ("shift", "rotation", "field")]
            sure = [t for t in chosen if not t["flagged"]]
            told, true = _told_and_true(chosen)
            numbers = [_change(applied), _change(chosen), f"{len(sure)}: {_change(sure)}"]
            numbers.append(f"{told:.1f} / {true:.1f}")
            rows.append([case, group, f"{len(applied)} of {len(chosen)}", *map(str, counts), *numbers])
    columns = [
        "image",
        "H&E",
        "applied",
        "shift",
        "rotation",
        "field",
        "where applied",
        "over all",
        "not flagged",
        "told",
    ]
    return records.table(columns, rows)


def _change(trials: list[dict]) -> str:
    if not trials:
        return "–"
    before, after = (np.mean([t[key] for t in trials]) for key in ("imposed_um", "error_um"))
    return f"{before:.1f} → {after:.1f}"


def _each(trials: list[dict]) -> str:
    rows = []
    for t in trials:
        found = t["found"]
        what = f"({found['dy_um']:.1f}, {found['dx_um']:.1f}), {found['rotation_deg']:.2f}°"
        what += ", field" if "field" in found["stages"] else ""
        error = "–" if t["case"] == AS_IT_IS else f"{t['imposed_um']:.1f} → {t['error_um']:.1f}"
        score = f"{found['score_here']:.3f} → {found['score_there']:.3f}"
        odds = f"{found['log_odds']:.1f}, {found['log_odds_rotation']:.1f}"
        sigmas = ", ".join(f"{one:.1f}" for one in found["sigmas"][2:])
        numbers = [
            what if found["stages"] else "none",
            error,
            score,
            f"{found['error_um']:.1f}",
            odds,
            sigmas,
            "yes" if t["flagged"] else "no",
            f"{t['seconds']:.1f}",
        ]
        rows.append([t["section"], str(t["n_spots"]), t["case"], *numbers])
    columns = [
        "section",
        "spots",
        "image",
        "found, µm",
        "error, µm",
        "R² here → there",
        "error told, µm",
        "log odds of shift, rotation",
        "standard errors of a field",
        "flagged",
        "seconds",
    ]
    return records.table(columns, rows)


if __name__ == "__main__":
    main()
