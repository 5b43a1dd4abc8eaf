"""Simulated sections whose expression is known in every bin."""
