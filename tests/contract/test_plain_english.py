"""Docstrings open with what they describe, and words of our vocabulary are not replaced by others."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src" / "hadmst_sc"
MODULES = sorted(SRC.rglob("*.py"))
# These open clauses, not sentences: a reader has to reach the end to know what is described.
OPENERS = re.compile(r"(Of|What|How|That of|Those of|Whoever|Whatever)\b")
# Words of the first edition, each with the one that stands for it now.
REPLACED = {
    "predict": re.compile(r"\b[Ff]ore(tell|tells|told|telling)\b"),
    "available": re.compile(r"\bto be had\b"),
    "perturbed": re.compile(r"\b([Dd]isturbed|[Ss]poilt)\b"),
    "blend": re.compile(r"\b[Mm]ixture of\b"),
}


def docstrings(tree: ast.AST) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [text for node in ast.walk(tree) if isinstance(node, kinds) and (text := ast.get_docstring(node))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_docstrings_open_with_what_they_describe(path):
    assert [text[:60] for text in docstrings(ast.parse(path.read_text())) if OPENERS.match(text)] == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SRC)))
def test_one_word_stands_for_one_thing(path):
    text = path.read_text()
    assert {word: found.group() for word, old in REPLACED.items() if (found := old.search(text))} == {}


def test_an_opener_is_found():
    assert OPENERS.match("How far it is.") and OPENERS.match("Of one run.") and not OPENERS.match("Offsets of a map.")
