"""Six numbers that must not fall: `python tests/accuracy/gate.py` writes them to `expected.toml`.

Two phantoms and four real sections, small enough for every run of the tests. A number may be worse than the committed
one by its tolerance: three times the largest spread over repeated runs (one and two BLAS threads, two seeds), and at
least `LEAST`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

FILE = Path(__file__).with_name("expected.toml")
LEAST = 0.002  # PCC; deviance, which is relative, may rise by as much
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

BREAST, BRAIN = "training/breast_only.safetensors", "training/brain_only.safetensors"
HOLDOUT = {"n_genes": 30, "bin_um": 25.0, "n_folds": 1}
CELLS = {"n_genes": 30, "bin_um": 40.0, "blocks": [1]}
PHANTOM = {"size_um": 960.0, "n_genes": 16}
CASES: dict[str, tuple[str, dict[str, object], str]] = {
    "phantom, glands": ("phantom", {"seed": 990_000, "style": "glands", **PHANTOM}, "default"),
    "phantom, layers": ("phantom", {"seed": 990_001, "style": "layers", **PHANTOM}, "default"),
    "her2st C2, held-out spots": ("holdout", {"section": "her2st_C2", **HOLDOUT}, BRAIN),
    "MOB 1, held-out spots": ("holdout", {"section": "st_mob_1", **HOLDOUT}, BREAST),
    "breast, simulated spots": ("simulated_spots", {"section": "xenium_breast_crop", **CELLS}, BRAIN),
    "brain, no image, simulated spots": ("simulated_spots", {"section": "xenium_mouse_brain", **CELLS}, BREAST),
}


def measured(name: str, random_state: int = 0) -> dict[str, float]:
    """PCC and deviance of ours, means over genes, on one of ``CASES``; their weights have not seen the tissue."""
    import cases
    import plan

    from hadmst_sc import tl

    case, options, weights = CASES[name]
    made = cases.CASES[case](**options)
    model = str(plan.weights_path(weights))
    found = [tl.predict(obs, model=model, random_state=random_state) for obs in made.given]
    (scores,) = made.score(found).values()
    return {metric: float(np.mean(scores[metric])) for metric in ("pcc", "deviance")}


def expected(name: str, measure: Callable[..., dict[str, float]] = measured) -> dict[str, float]:
    """Both numbers and their tolerances, from repeated runs."""
    runs = []
    for threads, seed in ((1, 0), (2, 0), (1, 1)):
        with threadpool_limits(threads, "blas"):
            runs.append(measure(name, seed))
    out = dict(runs[0])
    for metric in runs[0]:
        values = [run[metric] for run in runs]
        out[f"{metric}_tolerance"] = max(LEAST, 3 * (max(values) - min(values)))
    return out


if __name__ == "__main__":
    lines = []
    for one in CASES:
        found = expected(one)
        lines += [f'["{one}"]', *(f"{key} = {value:.4f}" for key, value in found.items()), ""]
        print(one, found, flush=True)
    FILE.write_text("# Written by `python tests/accuracy/gate.py`.\n\n" + "\n".join(lines))
