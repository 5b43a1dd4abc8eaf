"""Does each part earn its place? ``python benchmarks/ablations.py``.

Each part is switched off at inference, one at a time, on phantoms that training never drew; each phantom is its own
control, so the difference to the full method has a standard error over phantoms. A part earns its place where that
difference is larger than twice the standard error. Writes ``results/ablations.json`` and ``.md``.

Parts of the training are judged in the same way, by draws of weights that were trained without them (see
``training/ablations``): ``--weights FULL --trained NAME PATH ...`` writes ``results/ablations_training.*``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import baselines
import cases
import draws
import numpy as np
import records
from frame import Measurement, Record, Row, grouped, introduction, rounded, shown, with_weights
from scores import of_rates
from torch import Tensor

from hadmst_sc import metrics, tl
from hadmst_sc.distillation.components import CONTEXT
from hadmst_sc.models import HadmstModel
from hadmst_sc.models.local import silence
from hadmst_sc.models.weights import load_model
from hadmst_sc.phantom.simulate import Phantom, simulate
from hadmst_sc.section.observation import Observation

FIRST_SEED = 970_000  # neither training nor another benchmark draws these
SIZE_UM = 1280.0
N_DRAWS = 8


@dataclass(frozen=True)
class Part:
    """A part of the method, and what switches it off: options of ``tl.predict``, another model, another section."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    change: Callable[[Observation], Observation] = lambda obs: obs
    model: Callable[[HadmstModel], HadmstModel] = lambda model: model
    about: str = "mean"  # or "draws", which take the longer
    misregistration_um: float | None = None  # of the phantom, for the full method too; None: as `simulate` draws it


def no_student(model: HadmstModel) -> HadmstModel:
    """The model, whose student has no features."""
    model.student.features = 0
    return model


def no_offsets(model: HadmstModel) -> HadmstModel:
    """The model, whose alignment says nothing."""
    silence(model.alignment.layers[-1])
    return model


class WithoutMetagenes(HadmstModel):
    """A model that sees zeros in the place of the metagenes of a section."""

    def encode(self, context: Tensor, *, align: bool = True) -> tuple[Tensor, Tensor]:
        """As its base class does, of the other maps."""
        context = context.clone()
        context[:, : CONTEXT.n_leading] = 0
        return super().encode(context, align=align)


PARTS = (
    Part("no H&E", change=baselines.without_he),
    Part("no semantic distillation (student)", model=no_student),
    Part("no network", {"model": None}),
    Part("no metagene context", model=partial(with_weights, WithoutMetagenes)),
    Part("no registration, image in place or up to 20 µm off", {"align": False}),
    Part("no registration, image 40 µm off", {"align": False}, misregistration_um=40.0),
    Part("no offsets in the network, image up to 20 µm off", model=no_offsets),
    Part("no gate", {"gate": False}),
    Part("consistency off", {"consistency": "off"}),
    Part("consistency hard", {"consistency": "hard"}),
)


def scores(obs: Observation, rate: np.ndarray, part: Part, weights: str) -> dict[str, float]:
    """Scores of the mean, or of draws where the part is about them; averages over genes."""
    n = N_DRAWS if part.about == "draws" else 0
    model = part.model(load_model(weights))
    options = {"model": model, "n_samples": n, "n_steps": 1, "keep_draws": bool(n)} | dict(part.options)
    found = tl.predict(part.change(obs), **options)
    if found.draws is None:
        of_genes = of_rates(found.mean, rate, obs.inside)
        return {name: float(of_genes[name].mean()) for name in ("pcc", "rmse", "deviance")}
    coherence = [metrics.gene_coherence(draw, rate, obs.inside) for draw in found.draws]
    bands = np.abs(np.log(np.maximum(draws.power(found.draws, rate, obs.inside), 1e-9)))[1:]
    crps = draws.crps(found.draws, rate, obs.inside)
    return {"crps": crps, "coherence": float(np.mean(coherence)), "bands": float(bands.mean())}


def measure(options: argparse.Namespace) -> Record:
    if len(options.trained) % 2:
        raise SystemExit("`--trained` needs pairs of a name and a path.")
    pairs = zip(options.trained[::2], options.trained[1::2], strict=True)
    trained = [Part(name, {"model": path}, about="draws") for name, path in pairs]
    results = shown(_rows(tuple(trained) or PARTS, options))
    settings = {"n_seeds": options.seeds, "n_genes": options.genes, "size_um": SIZE_UM}
    return {"name": "ablations_training" if trained else "ablations", "settings": settings, "results": results}


def _rows(parts: tuple[Part, ...], options: argparse.Namespace) -> Iterator[Row]:
    for group, seed, style in cases.phantom_plan(options.seeds, first=FIRST_SEED, apart=1000):
        phantoms: dict[float | None, Phantom] = {}
        full: dict[tuple[str, float | None], Row] = {}
        for part in parts:
            off, about = part.misregistration_um, part.about
            if off not in phantoms:
                shape = {"size_um": SIZE_UM, "n_genes": options.genes}
                phantoms[off] = simulate(seed, style=style, misregistration_um=off, **shape)
            given = phantoms[off].observation, phantoms[off].rate
            if (about, off) not in full:
                full[about, off] = rounded(scores(*given, Part("full", about=about), options.weights), 4)
            row = {"set": group, "seed": seed, "style": style, "part": part.name, "about": about}
            without = rounded(scores(*given, part, options.weights), 4)
            yield row | {"full": full[about, off], "without": without}


def render(record: Record) -> str:
    """The page."""
    parts = ["# Ablations", introduction("ablations", record["settings"])]
    for (about,), rows in grouped(record["results"], "about").items():
        columns = list(rows[0]["full"])
        table = [
            [name, group, *(_change(own, column) for column in columns)]
            for (name,), of_part in grouped(rows, "part").items()
            for (group,), own in grouped(of_part, "set").items()
        ]
        parts += [f"Of the {about}:", records.table(["without", "phantoms", *columns], table)]
    return records.page(record, *parts)


def _change(rows: list[Row], column: str) -> str:
    change = np.array([row["without"][column] - row["full"][column] for row in rows])
    error = change.std(ddof=1) / np.sqrt(len(change)) if len(change) > 1 else np.inf
    text = f"{change.mean():+.4f} ± {error:.4f}"
    return f"**{text}**" if abs(change.mean()) > 2 * error else text


ABLATIONS = Measurement("ablations", __doc__, measure, render)

if __name__ == "__main__":
    ABLATIONS.main()
