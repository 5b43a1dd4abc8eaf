"""Preprocessing: validate a section, register its H&E, find nuclei, and make pseudo-spots."""

from __future__ import annotations

from hadmst_sc.pp.add_spots import add_spots
from hadmst_sc.pp.degrade import degrade
from hadmst_sc.pp.find_nuclei import find_nuclei
from hadmst_sc.pp.register import register
from hadmst_sc.pp.validate import Finding, Report, validate

__all__ = ["Finding", "Report", "add_spots", "degrade", "find_nuclei", "register", "validate"]
