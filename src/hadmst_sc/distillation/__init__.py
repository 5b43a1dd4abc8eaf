"""Closed-form distillation: components of a section, regressed on H&E and space, and the genes decoded from them.

The semantic distillation network is :mod:`hadmst_sc.models.distillation`.
"""
