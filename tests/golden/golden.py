"""Numbers that a change of the code must not move: `python tests/golden/golden.py` writes them to `golden.npz`.

Every array is thinned to a few values per map. `python tests/golden/golden.py --check` prints the largest relative
difference of each array to the committed one; on the machine that wrote them a change of structure leaves 1e-6 or less.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import hadmst_sc as hd
from hadmst_sc.alignment.register import estimate_alignment
from hadmst_sc.diffusion import keyed_noise
from hadmst_sc.diffusion.denoiser import Residual, first_closed_form
from hadmst_sc.distillation.genes import PRIORS, distill
from hadmst_sc.models.diffusion import gene_channels
from hadmst_sc.models.weights import load_model
from hadmst_sc.phantom.simulate import simulate
from hadmst_sc.section.features import N_BASE, he_features
from hadmst_sc.section.observation import Observation, Prediction

FILE = Path(__file__).with_name("golden.npz")
PER_MAP = 12  # values kept of a map
REAL = "her2st_C2"
RUNS = {
    "closed form": {"model": None},
    "default": {"n_samples": 2},
    "hard, four steps": {"n_samples": 2, "n_steps": 4, "consistency": "hard"},
    "metagenes": {"n_metagenes": 4},
    "spots moved, no gate": {"align": "spots", "gate": False},
}


Thin = Callable[[np.ndarray], np.ndarray]


def thinner(obs: Observation) -> Thin:
    """A function from ``(..., ny, nx)`` to ``(..., PER_MAP)``: some bins in the tissue."""
    ny, nx = _whole(obs)
    bins = np.argwhere(obs.inside[:ny, :nx])
    y, x = bins[np.linspace(0, len(bins) - 1, PER_MAP + 2).astype(int)[1:-1]].T
    return lambda maps: np.asarray(maps)[..., y, x]


def _whole(obs: Observation) -> tuple[int, int]:
    """The largest multiples of 4 in the shape of the grid, as the bare network needs them."""
    ny, nx = obs.grid.shape
    return ny // 4 * 4, nx // 4 * 4


def phantom() -> Observation:
    """A small section whose H&E lies off by 50 µm."""
    return simulate(5, n_genes=12, size_um=1600.0, bin_um=20.0, misregistration_um=(40.0, -30.0)).observation


def parts_of(obs: Observation) -> dict[str, np.ndarray]:
    """What the steps of a run make of a section, one by one."""
    thin, model, he = thinner(obs), load_model("default"), he_features(obs)
    found = estimate_alignment(obs, he=he)
    distilled = distill(obs, he=he, features=model.student.read(he[:N_BASE], obs.grid.bin_um))
    genes = np.arange(min(4, len(obs.genes)))
    priors = torch.from_numpy(distilled.priors(genes))
    features, offsets = model.read(distilled.section.context)
    spots = torch.from_numpy(distilled.spot_maps(genes))
    coverage = torch.from_numpy(distilled.measurement.coverage.clip(0, 1).astype(np.float32))
    noise = keyed_noise(obs.grid.shape, [obs.genes[gene] for gene in genes], 0, 0)
    ny, nx = _whole(obs)
    base = first_closed_form(priors)[:, None]
    state, evaluated = noise[:, None] * Residual(base).scale.mean(), {}
    with torch.inference_mode():
        channels = gene_channels(priors, spots, coverage, offsets)
        condition = model.condition(features.expand(len(genes), -1, -1, -1)[..., :ny, :nx], channels[..., :ny, :nx])
        token, here = torch.from_numpy(distilled.token[genes]), base[..., :ny, :nx]
        evaluated["mean"] = Residual(here).encode(model.mean(condition, token, here)).numpy()
        evaluated["sample"] = model.draw(noise[:, None, :ny, :nx], condition, token).numpy()
        level = torch.full((len(genes),), 0.7)
        evaluated["denoised"] = model.denoise(state[..., :ny, :nx], level, condition, token).numpy()
    registered = [found.dy_um, found.dx_um, found.rotation_deg, found.score_here, found.score_there, found.error_um]
    return {
        "features": thin(he),
        "learned features": thin(model.student.read(he[:N_BASE], obs.grid.bin_um)),
        "registration": np.array([*registered, found.log_odds, found.log_odds_rotation, *found.sigmas]),
        "context": thin(distilled.section.context),
        "encoded": thin(features),
        "offsets": thin(offsets),
        **{f"prior {name}": thin(priors[:, i]) for i, name in enumerate(PRIORS)},
        "closed form": thin(base),
        "token": distilled.token,
        "shape": distilled.shape,
        "r2": distilled.r2,
        "coexpression": distilled.coexpression(genes),
        "noise": thin(noise),
        "channels": thin(channels),
        **{name: thin(maps) for name, maps in evaluated.items()},
    }


def numbers_of(prediction: Prediction, thin: Thin) -> dict[str, np.ndarray]:
    """Maps of a run and what it says of them."""
    record = prediction.provenance
    gate = [record["gate"]["share"], record["gate"]["deviance"]] if isinstance(record["gate"], dict) else []
    spread = [record["calibration"]["coverage"]]
    stats = {name: np.asarray(column, float) for name, column in prediction.gene_stats.items()}
    return {
        "mean": thin(prediction.mean),
        "std": thin(prediction.std),
        **({} if prediction.draws is None else {"samples": thin(prediction.draws)}),
        "decided": np.array([*gate, *spread]),
        "stats": np.stack([stats[name] for name in sorted(stats)]),
    }


def computed(section: str) -> dict[str, np.ndarray]:
    """All numbers of ``"phantom"`` or ``REAL``, by name."""
    if section == "phantom":
        obs = phantom()
    else:
        obs = hd.io.read_observation(hd.datasets.load(section), f"{section}_full_image", genes=12, bin_um=20.0)
    found = parts_of(obs)
    for run, settings in (RUNS if section == "phantom" else {"default": RUNS["default"]}).items():
        numbers = numbers_of(hd.tl.predict(obs, **settings), thinner(obs))
        found |= {f"{run}, {name}": values for name, values in numbers.items()}
    return {f"{section}, {name}": np.asarray(values, np.float32) for name, values in found.items()}


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of two arrays relative to the largest value."""
    if found.shape != expected.shape or not (np.isfinite(found) == np.isfinite(expected)).all():
        return float("inf")
    found, expected = found.astype(float), expected.astype(float)
    known = np.isfinite(expected)
    if not known.any():
        return 0.0
    return float(np.abs(found - expected)[known].max() / max(np.abs(expected[known]).max(), 1e-12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed numbers, and write nothing")
    found = computed("phantom") | computed(REAL)
    if not parser.parse_args().check:
        np.savez_compressed(FILE, **found)
        return
    expected = dict(np.load(FILE))
    differences = {name: difference(found[name], expected[name]) for name in expected}
    for name, value in sorted(differences.items(), key=lambda item: -item[1])[:12]:
        print(f"{value:.1e}  {name}")
    raise SystemExit(max(differences.values()) > 1e-6 or found.keys() != expected.keys())


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    main()
