"""Plots of what was written; every function returns its Axes."""

from hadmst_sc.pl.registration import registration
from hadmst_sc.pl.reliability import reliability
from hadmst_sc.pl.superresolve import superresolve

__all__ = ["registration", "reliability", "superresolve"]
