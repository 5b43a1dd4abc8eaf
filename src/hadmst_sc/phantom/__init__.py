"""Simulated sections with known expression in every bin."""
