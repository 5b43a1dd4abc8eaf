"""Ours with its switches: options of ``tl.predict``, another section, another model, or what is made of its maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hadmst_sc.section.observation import Observation, Prediction

OURS, CLOSED_FORM = "ours", "ours, closed form"
N_DRAWS = 12


@dataclass(frozen=True)
class Switch:
    """Ours with something switched: options of ``tl.predict``, another section, another model."""

    options: Mapping[str, Any] = field(default_factory=dict)
    section: Callable[[Observation], Observation] = lambda obs: obs
    model: Callable[[Any], Any] = lambda model: model
    maps: Callable[[Prediction], Prediction] = lambda found: found


def without_he(obs: Observation) -> Observation:
    """The same section with a grey image."""
    return replace(obs, he=np.full_like(obs.he, 200))


def turned_he(obs: Observation) -> Observation:
    """The same section with its image upside down: as much structure, in the wrong place."""
    return replace(obs, he=np.ascontiguousarray(obs.he[:, ::-1, ::-1]))


def no_student(model: Any) -> Any:
    """The model, whose student has no features."""
    model.student.features = 0
    return model


def no_offsets(model: Any) -> Any:
    """The model, whose alignment says nothing."""
    from hadmst_sc.models.local import silence

    silence(model.alignment.layers[-1])
    return model


def no_metagenes(model: Any) -> Any:
    """The model, which sees zeros in the place of the metagenes of a section."""
    from hadmst_sc.distillation.components import CONTEXT

    encode = model.encode

    def without(context: Any, **options: Any) -> Any:
        context = context.clone()
        context[:, : CONTEXT.n_leading] = 0
        return encode(context, **options)

    model.encode = without
    return model


def first_draw(found: Prediction) -> Prediction:
    """The first sample as if it were the estimate: it has the texture and the co-expression that a mean has not."""
    assert found.draws is not None
    return replace(found, mean=found.draws[0])


_SAMPLES = {"n_samples": N_DRAWS}
SWITCHES: dict[str, Switch] = {
    OURS: Switch(),
    CLOSED_FORM: Switch({"model": None}),
    "ours, one draw": Switch({"n_samples": 1, "gate": False}, maps=first_draw),
    "ours, metagenes": Switch({"n_metagenes": 16}),
    "ours, no gate": Switch({"gate": False}),
    "ours, no registration": Switch({"align": False}),
    "ours, no offsets": Switch(model=no_offsets),
    "ours, no student": Switch(model=no_student),
    "ours, no metagene context": Switch(model=no_metagenes),
    "ours, hard consistency": Switch({"consistency": "hard"}),
    "ours, no consistency": Switch({"consistency": "off"}),
    "ours, no H&E": Switch(section=without_he),
    "ours, H&E upside down": Switch(section=turned_he),
    "ours, samples": Switch(_SAMPLES),
    "ours, samples of 4 evaluations": Switch(_SAMPLES | {"n_steps": 4}),
}
SAMPLERS = (OURS, *(name for name in SWITCHES if "samples" in name))


def ours(obs: Observation, *, switch: Switch, model: str, align: bool | str) -> Prediction:
    from hadmst_sc.models.weights import load_model
    from hadmst_sc.tl.predict import predict

    options = {"align": align, "model": model} | dict(switch.options)
    if options["model"] is not None:
        options["model"] = switch.model(load_model(options["model"]))
    return switch.maps(predict(switch.section(obs), **options))
