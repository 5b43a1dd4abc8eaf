"""Provenance: what a number was made from."""

from __future__ import annotations

import subprocess

import pytest


@pytest.mark.parametrize(("changed", "recorded"), [("benchmarks/results/full/a.jsonl", False), ("src/a.py", True)])
def test_changed_sources_are_recorded_and_results_are_not(changed, recorded, tmp_path, monkeypatch):
    import records

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    file = tmp_path / changed
    file.parent.mkdir(parents=True)
    file.write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert not records.provenance(weights=None)["uncommitted_changes"]
    file.write_text("2")
    assert records.provenance(weights=None)["uncommitted_changes"] is recorded
