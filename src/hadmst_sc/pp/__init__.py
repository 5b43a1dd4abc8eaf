"""Before super-resolution: find how far the H&E is off, and make pseudo-spots from high-resolution data."""

from __future__ import annotations

from hadmst_sc.pp.degrade import degrade
from hadmst_sc.pp.register import register

__all__ = ["degrade", "register"]
