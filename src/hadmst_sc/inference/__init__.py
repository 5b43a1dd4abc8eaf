"""Observation in, prediction out: settings, preparation, and the genes in chunks."""
