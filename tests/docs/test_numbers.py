"""No measured number is typed in a page: results change, and sentences do not notice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
    if not {"_build", "_generated"} & set(path.parts)
]
SCORE = re.compile(r"\b(PCC|RMSE|SSIM|CRPS|ARI|[Dd]eviance|[Cc]overage)\b")
DECIMAL = re.compile(r"(?<![\w.])[+−-]?\d*\.\d{2,}(?!\w)")
COST = re.compile(r"(?<![\w.])\d+(\.\d+)? (s|ms)\b(?!\.)|(?<![\w.])\d+\.\d+ GB\b")
CODE = re.compile(r"```.*?```|`[^`\n]*`|\$[^$]*\$", re.DOTALL)


def typed(text: str) -> list[str]:
    """Lines with a score or a cost as a number, outside code and formulas."""
    prose = CODE.sub(lambda found: "\n" * found[0].count("\n"), text)
    return [line for line in prose.splitlines() if (SCORE.search(line) and DECIMAL.search(line)) or COST.search(line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_measured_numbers_stand_in_result_files(page):
    assert not typed(page.read_text()), "write where the result is (benchmarks/results/...), not the number"


def test_what_is_searched_for_is_found():
    assert typed("a PCC of .75") and typed("deviance 0.46, as before") and typed("it takes 42 s") and typed("2.1 GB")
    assert not typed("`layers['q0.05']` has PCC") and not typed("at most 2 GB") and not typed("$0.05$ of deviance")
