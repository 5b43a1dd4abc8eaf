"""A run on arrays: registration and distillation once, then the genes in chunks."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import numpy as np

from hadmst_sc.alignment.record import Alignment, align_spots
from hadmst_sc.distillation.cells import Strength
from hadmst_sc.distillation.components import MAX_BASIS, Components, Panel, components
from hadmst_sc.distillation.genes import Distilled, decoder
from hadmst_sc.inference.by_metagenes import by_metagenes
from hadmst_sc.inference.estimators import ByMetagenes, ClosedForm, estimator_of
from hadmst_sc.inference.kept import Kept, packed, unpacked
from hadmst_sc.inference.prepare import Prepared, prepare
from hadmst_sc.inference.progress import Progress
from hadmst_sc.inference.settings import Settings
from hadmst_sc.inference.shared import Limits, SharedSection, tissue_crop
from hadmst_sc.inference.workers import MISFITS, Arrays, warm_up, work
from hadmst_sc.models.diffusion import ALIGN
from hadmst_sc.runtime import alone_after_fork, freed_memory_kept, give_back, pick_device, usual_errors
from hadmst_sc.section.errors import logger
from hadmst_sc.section.observation import Box, MapSink, Observation, Prediction
from hadmst_sc.trust.gate import Gate, evaluated_genes, fit_gate
from hadmst_sc.trust.intervals import Calibration, covered, doubt
from hadmst_sc.trust.reliability import reliability
from hadmst_sc.trust.spread import Spread, dispersion, excess

MAX_LOSS = 0.02  # relative increase of the deviance at held-out spots by metagenes; above it, a run warns
SECONDS = ("align", "gate", "distill", "metagenes", "predict")  # stages whose seconds are recorded


class _Before(NamedTuple):
    """Results of the stages before the genes."""

    obs: Observation
    components: Components
    found: Alignment | None
    gates: list[Gate]
    strength: Strength | None
    support: np.ndarray | None


def _before(obs: Observation, settings: Settings, kept: Kept, progress: Progress) -> _Before:
    """Register, judge the network and distil, unless all of this is kept."""

    def facts() -> dict[str, Any]:
        prepared = prepare(obs, settings, kept)
        gates: list[Gate] = []
        if settings.is_gated:  # before the section is distilled: memory holds one distillation at a time
            progress.at("gate")
            gates = kept("gate", lambda: {"gates": _gate(prepared, settings)})["gates"]
        progress.at("distill")
        return {
            "found": None if prepared.found is None else asdict(prepared.found),
            "gates": gates,
            "strength": prepared.strength,
            "support": prepared.support,
        } | packed(_distil(prepared))

    known = kept("distilled", facts)
    found, strength = known["found"], known["strength"]
    found = None if found is None else Alignment.from_record(found)
    if found is not None and settings.align == "spots":
        obs = align_spots(obs, found)
    return _Before(
        obs,
        unpacked(known),
        found,
        [Gate(*gate) for gate in known["gates"]],
        None if strength is None else Strength(*strength),
        known["support"],
    )


def _distil(prepared: Prepared) -> Components:
    obs = prepared.obs
    panel = Panel(obs.counts, obs.measurement)
    found = components(obs, panel, he=prepared.he, features=prepared.features)
    give_back()  # memory that its threads have freed
    return found


def _shared(obs: Observation, found: Components, support: np.ndarray | None, settings: Settings) -> SharedSection:
    """Encode a distilled section."""
    distilled = decoder(found, Panel(obs.counts, obs.measurement))
    crop = tissue_crop(obs.inside, ALIGN)
    return SharedSection(
        distilled=distilled,
        genes=obs.genes,
        inside=obs.inside[crop],
        crop=crop,
        measurement=obs.measurement.cropped(crop),
        settings=settings.light(),
        limits=Limits(settings.window),
        estimator=estimator_of(settings.network, found.context[(slice(None), *crop)]),
        support=None if support is None else support[crop],
    )


def _gate(prepared: Prepared, settings: Settings) -> list[Gate]:
    """Judge metagenes and network against the closed form at held-out spots.

    Consistency has no effect there, and is off.
    """
    settings = replace(settings, n_samples=0, consistency="off")
    obs = prepared.obs
    obs = obs.subset_genes(Panel(obs.counts, obs.measurement).basis())  # genes that the components come from

    def maps_of(given: Observation, genes: np.ndarray, box: Box) -> list[np.ndarray]:
        part = prepared.of_part(given, box)
        section = _shared(part.obs, _distil(part), part.support, settings)
        here = replace(section.settings, client=None)  # only the network is worth sending to a worker
        sections = [replace(section, estimator=ClosedForm(), settings=here)]
        if settings.n_metagenes is not None:
            sections.append(replace(by_metagenes(section, without=genes), settings=here))
        sections.append(section)
        found = []
        for one in sections:
            arrays = Arrays((len(genes), *given.grid.shape))
            for chunk, maps, _ in work(one, genes, None):
                assert maps is not None  # for types: there is no sink
                arrays.take(np.flatnonzero(np.isin(genes, chunk)), section.crop, maps)
            found.append(arrays.mean)
        return found

    return fit_gate(obs, maps_of)


def _spread(obs: Observation, distilled: Distilled) -> tuple[Spread, Calibration]:
    """Spread of the estimate from leave-one-out predictions; its intervals are tested on evenly spaced genes."""
    sums = [excess(obs.counts[:, genes], distilled.held_out(genes)) for genes in distilled.panel.blocks()]
    found = dispersion(np.concatenate(sums, 1), len(obs.spots))
    genes = evaluated_genes(obs)
    expected = distilled.held_out(genes)
    within = covered(obs.counts[:, genes], expected, np.sqrt(found[genes] * expected))
    calibration = Calibration(float(within.mean()), len(obs.spots))
    if doubted := doubt({"calibration": calibration._asdict()}):
        logger.warning("intervals may be too narrow or too wide: %s", doubted)
    return Spread(found, obs.measurement.pitch), calibration


def _metagene_loss(judged: list[Gate]) -> float | None:
    """Relative increase of the deviance at held-out spots by metagenes; ``None`` if not judged."""
    return judged[0].deviance / judged[1].deviance - 1 if len(judged) == 2 else None


def _warn_of_loss(judged: list[Gate]) -> None:
    loss = _metagene_loss(judged)
    if loss is not None and loss > MAX_LOSS:
        logger.warning(
            "metagenes predict held-out spots %.1f %% worse than the network gene by gene; for a few hundred genes, "
            "pass n_metagenes=None",
            100 * loss,
        )


@freed_memory_kept()
@usual_errors
def run(
    obs: Observation, settings: Settings, into: MapSink | None, progress: Progress, kept: Kept | None = None
) -> Prediction:
    """Predict an observation, with checked settings and loaded weights; see ``tl.predict``."""
    alone_after_fork()
    # Kept until the end: Dask cancels tasks without a reference.
    _importing = None if settings.client is None else warm_up(settings.client)
    if settings.client is None:  # workers pick their own device
        settings = replace(settings, device=str(pick_device(settings.device)))
    if settings.cells is not None and settings.align is True:
        settings = replace(settings, align="spots")  # cells lie on the image, which stays where it is
    obs, n, kept = obs.in_order(), settings.n_genes or len(obs.genes), kept or Kept()
    done = dict(into.finished) if into is not None else {}
    left = np.array([gene for gene in range(n) if gene not in done], int)
    progress.shorten("predict", len(left) / n)
    for stage in SECONDS[:3] * ("distilled" in kept):
        progress.shorten(stage, 0.0)
    progress.at("align")
    before = _before(obs, settings, kept, progress)
    obs, gates = before.obs, before.gates
    _warn_of_loss(gates)
    section = _shared(obs, before.components, before.support, settings)
    if gates:
        section = replace(section, share=gates[0].share)
    spread, calibration = _spread(obs, section.distilled)
    if settings.with_std:
        section = replace(section, variance=spread.of_bin)
    if settings.n_metagenes is not None:
        progress.at("metagenes")
        section = replace(
            section, estimator=ByMetagenes(**kept("metagenes", lambda: vars(by_metagenes(section).estimator)))
        )
    arrays = None
    if into is None:
        arrays = Arrays((n, *obs.grid.shape), with_std=settings.with_std, n_samples=settings.n_samples)
    progress.at("predict", text=f"predicting {len(done)} of {n} genes")
    with closing(work(section, left, into)) as results:  # after an error here, workers stop too
        for chunk, maps, facts in results:
            if arrays is not None and maps is not None:
                arrays.take(chunk, section.crop, maps)
            done |= facts
            progress.at("predict", 1 - (n - len(done)) / len(left), f"predicting {len(done)} of {n} genes")
    progress.at("write")
    if into is not None:
        mean, std, draws = *into.maps(), None
    else:
        assert arrays is not None  # for types
        mean, std, draws = arrays.mean, arrays.std, arrays.draws
    mean_misfit, max_misfit = (np.array([done[gene][name] for gene in range(n)]) for name in MISFITS)
    stats = _gene_stats(section.distilled) | {"dispersion": spread.dispersion}
    provenance = _provenance(settings, before, calibration) | {
        "max_spot_residual": float(max_misfit.max()),
        "mean_spot_residual": float(mean_misfit.mean()),
    }
    return Prediction(
        obs.grid,
        obs.genes[:n],
        mean,
        std,
        obs.inside,
        obs.measurement.coverage.clip(0, 1).astype(np.float32),  # spots may overlap
        {name: values[:n] for name, values in stats.items()} | {"spot_residual": mean_misfit},
        provenance | {f"seconds_{stage}": round(progress.seconds.get(stage, 0.0), 3) for stage in SECONDS},
        draws,
    )


def _gene_stats(distilled: Distilled) -> dict[str, np.ndarray]:
    he, space, joint = distilled.r2
    return reliability(distilled) | {
        "loo_r2_he": he,
        "loo_r2_space": space,
        "loo_r2": joint,
        "mean_counts_per_bin": distilled.gene_mean,
    }


def _provenance(settings: Settings, before: _Before, calibration: Calibration) -> dict[str, Any]:
    found, gates, learned = before.found, before.gates, before.strength
    return settings.record() | {
        "model_sha256": settings.network.sha256 if settings.network else "",
        "registration": asdict(found) if found is not None else "off",
        "gate": gates[0]._asdict() if gates else "off",
        "strength_of_cells": learned._asdict() if learned is not None else "off",
        "calibration": calibration._asdict(),
        "metagene_loss": _metagene_loss(gates),
        "n_genes_of_components": min(len(before.obs.genes), MAX_BASIS),
    }
