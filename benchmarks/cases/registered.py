"""Image and spots of a case registered as ours registers them, for methods that cannot."""

from __future__ import annotations

from dataclasses import replace

from cases.case import Case
from hadmst_sc.alignment.record import align_image, align_spots
from hadmst_sc.alignment.register import estimate_alignment
from hadmst_sc.section.observation import Observation


def registered(case: Case, align: bool | str) -> Case:
    """The same case, each of its sections registered."""
    return replace(case, given=tuple(_register(obs, align) for obs in case.given))


def _register(obs: Observation, align: bool | str) -> Observation:
    found = estimate_alignment(obs)
    return align_spots(obs, found) if align == "spots" else align_image(obs, found)
