"""Pages agree with the sources."""

from __future__ import annotations

import importlib
import importlib.util
import re
import tomllib
from itertools import combinations
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


@pytest.fixture
def table(root) -> dict[str, Any]:
    return tomllib.loads((root / "docs" / "concepts" / "architecture.toml").read_text())


def test_the_way_of_a_gene_names_modules_that_exist(table):
    named = [module for step in table["way"] for module in step.get("modules", [])]
    assert len(named) > 10
    assert [module for module in named if not isinstance(find(module), ModuleType)] == []


def test_lines_between_rooms_go_down_and_cross_no_box(root, table):
    spec = importlib.util.spec_from_file_location("pictures", root / "docs" / "pictures.py")
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    width, height = pictures.BOX
    boxes, lines = pictures.layout(table["rooms"])
    assert boxes.keys() == table["rooms"].keys()
    for (x0, y0), (x1, y1) in combinations(boxes.values(), 2):
        assert abs(x0 - x1) > width or abs(y0 - y1) > height
    for x, y in boxes.values():
        assert width / 2 < x < pictures.WIDTH - width / 2 and y >= height / 2
    for line in lines:
        assert [y for _, y in line] == sorted({y for _, y in line})
        for x, y in line[1:-1]:
            assert all(abs(x - x0) > width / 2 or y != y0 for x0, y0 in boxes.values())
