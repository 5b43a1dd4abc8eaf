"""What pages say of the sources is there."""

from __future__ import annotations

import importlib
import re
from types import ModuleType
from typing import Any

import pytest


def find(dotted: str, start: str = "hadmst_sc") -> Any:
    """The module, function or attribute of that name below `start`, or `None`."""
    thing: Any = importlib.import_module(start)
    for part in dotted.split("."):
        try:
            thing = getattr(thing, part, None) or importlib.import_module(f"{thing.__name__}.{part}")
        except (ImportError, AttributeError):
            return None
    return thing


def test_every_equation_names_code_that_exists(root):
    table = (root / "docs" / "concepts" / "method.md").read_text().split("| | equation | code |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (\d+) \|.*\| ([^|]*) \|$", table, re.M)
    assert [int(number) for number, _ in rows] == list(range(1, len(rows) + 1))
    lacking = []
    for number, cell in rows:
        home = "hadmst_sc"
        for name in re.findall(r"`([\w.]+)`", cell):
            # A bare name lives where the one before it does.
            found = find(name) if "." in name or find(name, home) is None else find(name, home)
            lacking += [f"{number}: {name}"] * (found is None)
            if "." in name and found is not None:
                home = f"hadmst_sc.{name}" if isinstance(found, ModuleType) else f"hadmst_sc.{name.rpartition('.')[0]}"
    assert rows and lacking == []


@pytest.mark.parametrize(
    "section", ["getting_started", "concepts/", "how_to/", "reference/", "benchmarks", "model_card", "contributing"]
)
def test_the_index_leads_to_every_kind_of_page(root, section):
    assert re.search(rf"^{section}", (root / "docs" / "index.md").read_text(), re.M)
