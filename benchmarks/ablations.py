"""Does each part earn its place? ``python benchmarks/ablations.py``.

Each part is switched off at inference, one at a time, on phantoms that training never drew; each phantom is its own
control, so the difference to the full method has a standard error over phantoms. A part earns its place where that
difference is larger than twice the standard error. Writes ``results/ablations.json`` and ``.md``.

Parts of the training are judged in the same way, by draws of weights that were trained without them (see
``training/ablations``): ``--weights FULL --trained NAME PATH ...`` writes ``results/ablations_training.*``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import baselines
import cases
import draws
import numpy as np
import records
import torch
from scores import of_rates

from hadmst_sc import metrics, tl
from hadmst_sc.distillation.components import CONTEXT
from hadmst_sc.distillation.genes import Distilled
from hadmst_sc.models import HadmstModel, HEStudent
from hadmst_sc.models.alignment import SpatialAlignment
from hadmst_sc.phantom.simulate import Phantom, simulate
from hadmst_sc.section.observation import Observation

FIRST_SEED = 970_000  # neither training nor another benchmark draws these
SIZE_UM = 1280.0
N_DRAWS = 8
FULL = "full"


@dataclass(frozen=True)
class Part:
    """What is switched off, and how."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of `tl.predict`
    change: Callable[[Observation], Observation] = lambda obs: obs
    without: Callable[[], AbstractContextManager[Any]] = nullcontext
    about: str = "mean"  # or "draws", which take the longer
    misregistration_um: float | None = None  # of the phantom, for the full method too; None: as `simulate` draws it


def _no_student() -> AbstractContextManager[Any]:
    return mock.patch.object(
        HEStudent, "read", lambda self, stains, bin_um: np.zeros((0, *stains.shape[1:]), np.float32)
    )


def _no_offsets() -> AbstractContextManager[Any]:
    forward = SpatialAlignment.forward
    return mock.patch.object(SpatialAlignment, "forward", lambda self, a, b: torch.zeros_like(forward(self, a, b)))


def _no_metagenes() -> AbstractContextManager[Any]:
    encode = HadmstModel.encode

    def without(self: HadmstModel, context: torch.Tensor, **options: Any) -> Any:
        context = context.clone()
        context[:, : CONTEXT.n_metagenes] = 0
        return encode(self, context, **options)

    return mock.patch.object(HadmstModel, "encode", without)


def _own_noise() -> AbstractContextManager[Any]:
    loadings = Distilled.coexpression
    return mock.patch.object(Distilled, "coexpression", lambda self, genes: np.zeros_like(loadings(self, genes)))


PARTS = (
    Part("no H&E", change=baselines.without_he),
    Part("no semantic distillation (student)", without=_no_student),
    Part("no network", {"model": None}),
    Part("no metagene context", without=_no_metagenes),
    Part("no registration, image in place or up to 20 µm off", {"align": False}),
    Part("no registration, image 40 µm off", {"align": False}, misregistration_um=40.0),
    Part("no offsets in the network, image up to 20 µm off", without=_no_offsets),
    Part("no gate", {"gate": False}),
    Part("consistency off", {"consistency": "off"}),
    Part("consistency hard", {"consistency": "hard"}),
    Part("no shared noise", without=_own_noise, about="draws"),
)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4, help="phantoms per set")
    parser.add_argument("--genes", type=int, default=16)
    parser.add_argument("--weights", default="default")
    parser.add_argument("--trained", nargs="+", default=[], metavar="NAME PATH", help="weights trained without a part")
    parser.add_argument("--output", type=Path, default=records.RESULTS)
    return parser.parse_args(arguments)


def scores(obs: Observation, rate: np.ndarray, part: Part, weights: str) -> dict[str, float]:
    """Of the mean, and of draws where the part is about them; averages over genes."""
    n = N_DRAWS if part.about == "draws" else 0
    options = {"model": weights, "n_samples": n, "n_steps": 1, "keep_draws": bool(n)} | dict(part.options)
    with part.without():
        found = tl.predict(part.change(obs), **options)
    if found.draws is None:
        of_genes = of_rates(found.mean, rate, obs.inside)
        return {name: float(of_genes[name].mean()) for name in ("pcc", "rmse", "deviance")}
    coherence = [metrics.gene_coherence(draw, rate, obs.inside) for draw in found.draws]
    bands = np.abs(np.log(np.maximum(draws.power(found.draws, rate, obs.inside), 1e-9)))[1:]
    crps = draws.crps(found.draws, rate, obs.inside)
    return {"crps": crps, "coherence": float(np.mean(coherence)), "bands": float(bands.mean())}


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    if len(options.trained) % 2:
        raise SystemExit("`--trained` needs pairs of a name and a path.")
    made = records.provenance(weights=options.weights)
    pairs = list(zip(options.trained[::2], options.trained[1::2], strict=True))
    trained = [Part(name, {"model": path}, about="draws") for name, path in pairs]
    results = []
    for group, seed, style in cases.phantom_plan(options.seeds, first=FIRST_SEED, apart=1000):
        phantoms: dict[float | None, Phantom] = {}
        full: dict[tuple[str, float | None], dict[str, float]] = {}
        for part in trained or PARTS:
            off = part.misregistration_um
            if off not in phantoms:
                phantoms[off] = simulate(
                    seed, style=style, size_um=SIZE_UM, n_genes=options.genes, misregistration_um=off
                )
            given = phantoms[off].observation, phantoms[off].rate
            if (part.about, off) not in full:
                full[part.about, off] = scores(*given, Part(FULL, about=part.about), options.weights)
            found = scores(*given, part, options.weights)
            row = {"set": group, "seed": seed, "style": style, "part": part.name, "about": part.about}
            results.append(row | {"full": _rounded(full[part.about, off]), "without": _rounded(found)})
            print(row, results[-1]["full"], results[-1]["without"], flush=True)
    settings = {"n_seeds": options.seeds, "n_genes": options.genes, "size_um": SIZE_UM}
    record = {"provenance": made, "settings": settings, "results": results}
    records.save("ablations_training" if trained else "ablations", record, render(record), options.output)


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def render(record: dict[str, Any]) -> str:
    """The page."""
    intro = (
        "Change of each score when one part is left out, mean ± standard error over phantoms, each its own control; "
        f"{record['settings']['n_seeds']} phantoms per set. **Bold**: beyond two standard errors. PCC and coherence "
        "are better when large, the others when small. *Bands*: how far the power of draws is from the truth's above "
        "two bins, mean |ln ratio| over octaves. The network has never been trained without metagenes or student, so "
        "those rows also hold its surprise."
    )
    parts = ["# Ablations", intro]
    for about in dict.fromkeys(row["about"] for row in record["results"]):
        rows = [row for row in record["results"] if row["about"] == about]
        columns = list(rows[0]["full"])
        table = []
        for name in dict.fromkeys(row["part"] for row in rows):
            for group in dict.fromkeys(row["set"] for row in rows):
                own = [row for row in rows if (row["part"], row["set"]) == (name, group)]
                table.append([name, group, *(_change(own, column) for column in columns)])
        parts += [f"Of the {about}:", records.table(["without", "phantoms", *columns], table)]
    return "\n\n".join([*parts, records.footer(record)])


def _change(rows: list[dict[str, Any]], column: str) -> str:
    change = np.array([row["without"][column] - row["full"][column] for row in rows])
    error = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else np.inf
    text = f"{change.mean():+.4f} ± {error:.4f}"
    return f"**{text}**" if abs(change.mean()) > 2 * error else text


if __name__ == "__main__":
    main()
