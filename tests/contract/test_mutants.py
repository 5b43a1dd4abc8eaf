"""The faults of `make mutants` fit the sources: a text that has changed would end the whole check."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_each_mutant_changes_one_place_of_its_file(root: Path):
    read = runpy.run_path(str(root / ".ci" / "mutants.py"))["read"]
    assert len(read([])) >= 40  # exits with a list of those that do not fit
