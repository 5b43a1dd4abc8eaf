"""Which source files a result depends on: all that its code imports, found in the parsed files, not by hand.

Comments, docstrings and layout do not count: a sentence that reads better makes no result stale.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGE = "hadmst_sc"
ROOTS = (HERE.parent / "src", HERE)  # where names of modules are looked up


def digest(files: Iterable[Path]) -> str:
    """Digest of the code of some files and of all that they import."""
    code = hashlib.sha256()
    for path in sorted({one for file in files for one in closure(file)}):
        code.update(_code(path).encode())
    return code.hexdigest()[:12]


@cache
def closure(file: Path) -> frozenset[Path]:
    """A file and all files of this project that it imports, directly or not; imports for types do not count."""
    found, waiting = set(), [file]
    while waiting:
        here = waiting.pop()
        if here not in found:
            found.add(here)
            waiting += _imported(here)
    return frozenset(found)


def find(module: str, *beside: Path) -> Path | None:
    """File of a module of the package, of the benchmarks or of other folders; of a package its ``__init__.py``."""
    for root in (*ROOTS, *beside):
        stem = root.joinpath(*module.split("."))
        for path in (stem.with_suffix(".py"), stem / "__init__.py"):
            if path.is_file():
                return path
    return None


@cache
def _imported(file: Path) -> tuple[Path, ...]:
    found = (find(name, file.parent) for name in _names(ast.parse(file.read_text())))
    return tuple(path for path in found if path is not None)


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for one in node.names:
                yield from [one.name] if one.name != PACKAGE else _package()
        elif isinstance(node, ast.ImportFrom) and node.module:
            for one in node.names:
                inner = f"{node.module}.{one.name}"
                yield inner if find(inner) else node.module
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from _names(node)


@cache
def _package() -> tuple[str, ...]:
    """All modules that numbers can depend on: the package imports its parts when they are asked for."""
    files = (path.relative_to(ROOTS[0]).with_suffix("") for path in (ROOTS[0] / PACKAGE).rglob("*.py"))
    return tuple(".".join(file.parts) for file in files if file.parts[1] not in ("pl", "cli"))


@cache
def _code(path: Path) -> str:
    tree = ast.parse(path.read_text())
    if path.name == "__init__.py" and any(getattr(node, "name", "") == "__getattr__" for node in tree.body):
        return ""  # it passes on the names of its modules, which are found for themselves, and of some only when asked
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            value = body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                node.body = body[1:]  # type: ignore[attr-defined]
    return ast.unparse(tree)
