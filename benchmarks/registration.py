"""Whether the shift of the H&E against the spots is found: ``python benchmarks/registration.py``.

Each phantom is seen three times: with the image in place; with the image turned by 180°, so that it has nothing to do
with the spots and any shift is chance; and with the image moved by a known length. Real sections are seen as they are
and with known shifts added to whatever they have. Writes ``results/registration.json`` and ``.md``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import report

from hadmst_sc.contract import Observation
from hadmst_sc.registration import MIN_SIGMAS, Shift, estimate_shift, shift_image

FIRST_SEED = 980_000  # neither training (below 100,000) nor the choice of the threshold drew these
SIZES_UM = (1200.0, 1600.0, 1920.0)  # in turn: few spots tell less
IMPOSED_UM = (20.0, 60.0)
N_GENES = 32
IN_PLACE, TURNED, MOVED, AS_IT_IS = "in place", "turned by 180°", "moved 20 to 60 µm", "as it is"
SECTIONS = (("visium_mouse_brain", 20.0), ("visium_dlpfc_151673", 20.0), ("her2st_C2", 20.0))  # and bins, µm
REAL_IMPOSED_UM = ((30.0, -20.0), (-25.0, 45.0))


@dataclass(frozen=True)
class Trial:
    """One estimate: what it was given, and what it found."""

    section: str
    group: str  # how much the H&E of a phantom tells; "real"
    case: str
    n_spots: int
    imposed_um: tuple[float, float]
    found: Shift
    error_um: float  # to the imposed shift; what remains of it where nothing was applied
    seconds: float


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=60)
    parser.add_argument("--no-real", action="store_true", help="phantoms only")
    parser.add_argument("--output", type=Path, default=report.RESULTS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    made = report.provenance(weights=None)
    trials = []
    real = () if options.no_real else on_real_sections()
    for trial in chain(on_phantoms(options.phantoms), real):
        print(f"  {trial.section}, {trial.case}: {trial.found}", flush=True)
        trials.append(trial)
    settings = {"n_phantoms": options.phantoms, "first_seed": FIRST_SEED, "min_sigmas": MIN_SIGMAS}
    record = {"provenance": made, "settings": settings, "trials": [plain(trial) for trial in trials]}
    report.save("registration", record, render(record), options.output)


def on_phantoms(n: int) -> Iterator[Trial]:
    """Three trials on each of ``n`` phantoms; styles and sizes in turn."""
    from hadmst_sc.datasets.simulate import HELD_OUT_STYLES, TRAIN_STYLES, simulate

    styles = (*TRAIN_STYLES, *HELD_OUT_STYLES)
    for i in range(n):
        seed, rng = FIRST_SEED + i, np.random.default_rng(FIRST_SEED + i)
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(*IMPOSED_UM)
        draw = {"size_um": SIZES_UM[i % len(SIZES_UM)], "n_genes": N_GENES, "style": styles[i % len(styles)]}
        straight = simulate(seed, misregistration_um=(0.0, 0.0), **draw)
        # A shift has a random stream of its own: all else stays as it was.
        moved = simulate(seed, misregistration_um=(length * np.sin(angle), length * np.cos(angle)), **draw)
        turned = replace(straight.observation, he=np.ascontiguousarray(straight.observation.he[:, ::-1, ::-1]))
        about = (f"{straight.style} {seed}", straight.clarity)
        yield trial(*about, IN_PLACE, straight.observation)
        yield trial(*about, TURNED, turned)
        yield trial(*about, MOVED, moved.observation, moved.misregistration_um)


def on_real_sections() -> Iterator[Trial]:
    """Each section of the data folder as it is, and with shifts imposed."""
    from hadmst_sc.datasets import available, load
    from hadmst_sc.io.read import read_observation

    try:
        present = available()
    except FileNotFoundError as error:
        print(f"  no real sections: {error}")
        return
    for name, bin_um in SECTIONS:
        if name not in present:
            print(f"  {name} is not in the data folder")
            continue
        obs = read_observation(load(name), f"{name}_full_image", genes=200, bin_um=bin_um)
        as_it_is = trial(name, "real", AS_IT_IS, obs)
        yield as_it_is
        own = as_it_is.found
        for dy, dx in REAL_IMPOSED_UM:
            moved = shift_image(obs, Shift(-dy, -dx, 0.0, 0.0, True))
            # Nobody knows the section's own shift: errors are relative to what was found for it.
            yield trial(name, "real", f"moved ({dy:g}, {dx:g}) µm", moved, (own.dy_um + dy, own.dx_um + dx))


def trial(section: str, group: str, case: str, obs: Observation, imposed_um: tuple[float, float] = (0.0, 0.0)) -> Trial:
    started = time.perf_counter()
    found = estimate_shift(obs)
    seconds = time.perf_counter() - started
    error = float(np.hypot(found.dy_um - imposed_um[0], found.dx_um - imposed_um[1]))
    return Trial(section, group, case, len(obs.spots), imposed_um, found, error, seconds)


def plain(trial: Trial) -> dict:
    """JSON-ready, rounded to what means something."""
    record = asdict(trial)
    record["imposed_um"] = [round(float(v), 2) for v in trial.imposed_um]
    record["found"] = {key: v if isinstance(v, bool) else round(float(v), 4) for key, v in record["found"].items()}
    return record | {"error_um": round(trial.error_um, 2), "seconds": round(trial.seconds, 2)}


def render(record: dict) -> str:
    """The Markdown page of a record."""
    settings, trials = record["settings"], record["trials"]
    phantoms = [t for t in trials if t["group"] != "real"]
    parts = [
        "# Registration of H&E and spots",
        f"A shift is applied where the errors of left-out spots fall by more than {settings['min_sigmas']:g} standard "
        "errors. With the image in place, or turned so that it has nothing to do with the spots, every applied shift "
        "is a false alarm.",
        f"## {settings['n_phantoms']} phantoms, seeds from {settings['first_seed']:,}",
        "By how much the H&E tells. Errors in µm: of applied shifts, and over all (what remains where none was).",
        _by_case(phantoms),
    ]
    if len(phantoms) < len(trials):
        parts += ["## Real sections", _each([t for t in trials if t["group"] == "real"])]
    return "\n\n".join([*parts, report.footer(record)])


def _by_case(trials: list[dict]) -> str:
    rows = []
    for case in dict.fromkeys(t["case"] for t in trials):
        of_case = [t for t in trials if t["case"] == case]
        for group in (*sorted({t["group"] for t in of_case}), "all"):
            chosen = [t for t in of_case if group in ("all", t["group"])]
            errors = [t["error_um"] for t in chosen if t["found"]["applied"]]
            summary = [f"{f(errors):.1f}" if errors else "–" for f in (np.median, np.mean, np.max)]
            everything = f"{np.mean([t['error_um'] for t in chosen]):.1f}"
            rows.append([case, group, f"{len(errors)} of {len(chosen)}", *summary, everything])
    return report.table(["image", "H&E", "applied", "median", "mean", "largest", "mean over all"], rows)


def _each(trials: list[dict]) -> str:
    rows = []
    for t in trials:
        found = t["found"]
        shift = f"({found['dy_um']:.1f}, {found['dx_um']:.1f})" if found["applied"] else "none"
        score = f"{found['score_here']:.3f} → {found['score_there']:.3f}"
        error = "–" if t["case"] == AS_IT_IS else f"{t['error_um']:.1f}"
        rows.append([t["section"], str(t["n_spots"]), t["case"], shift, error, score, f"{t['seconds']:.1f}"])
    return report.table(["section", "spots", "image", "found, µm", "error, µm", "R² here → there", "seconds"], rows)


if __name__ == "__main__":
    main()
