"""Plots of results; every function returns its Axes."""

from hadmst_sc.pl.cells import cells
from hadmst_sc.pl.compare import compare
from hadmst_sc.pl.registration import registration
from hadmst_sc.pl.reliability import reliability
from hadmst_sc.pl.superresolve import superresolve
from hadmst_sc.pl.uncertainty import uncertainty

__all__ = ["cells", "compare", "registration", "reliability", "superresolve", "uncertainty"]
