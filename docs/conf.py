"""Sphinx configuration; also writes pages and pictures generated from the sources (`_generated`)."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import hadmst_sc

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path.insert(0, str(HERE))
import cards  # noqa: E402
import pictures  # noqa: E402

REPOSITORY = "https://github.com/hadmst-sc/hadmst-sc"
OFFLINE = os.environ.get("DOCS_OFFLINE") == "1"

project = "hadmst_sc"
author = "hadmst_sc developers"
copyright = f"2026, {author}"
version = release = hadmst_sc.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_design",
]
exclude_patterns = ["_build", "_generated", "**.ipynb_checkpoints"]
nitpicky = False

html_theme = "sphinx_book_theme"
html_theme_options = {
    "repository_url": REPOSITORY,
    "use_repository_button": True,
    "use_download_button": False,
    "navbar_persistent": [],  # search is in the sidebar
}
html_title = "hadmst_sc"
html_context = {"default_mode": "auto"}  # light or dark, as the reader's system
html_static_path = ["_static"]
html_css_files = ["site.css"]

autosummary_generate = False  # one page, made below
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # results are included at the level where they fit
nb_execution_mode = "off"  # `make tutorials` stores the outputs, and the tests compare them

_INVENTORIES = {
    "anndata": "https://anndata.readthedocs.io/en/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "numpy": "https://numpy.org/doc/stable/",
    "python": "https://docs.python.org/3/",
    "spatialdata": "https://spatialdata.scverse.org/en/stable/",
    "torch": "https://docs.pytorch.org/docs/stable/",
}
intersphinx_mapping = {} if OFFLINE else {name: (url, None) for name, url in _INVENTORIES.items()}


def _prose_returns(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Returns sections are prose; napoleon would parse each line as a type and make a list."""
    text = "\n".join(lines)
    found = re.search(r"^Returns\n-+\n(.*?)(?=\n+^\w[\w ]*\n-+$|\Z)", text, re.MULTILINE | re.DOTALL)
    if found and not re.search(r"^ ", found[1].split("\n\n")[0], re.MULTILINE):
        body = "\n".join(f"    {line}" if line else "" for line in found[1].splitlines())
        # The two empty lines end the section before it.
        lines[:] = f"{text[: found.start()].rstrip()}\n\n\n:returns:\n{body}\n\n{text[found.end() :]}".split("\n")


def _copied_tutorials(app: Any, page: str, source: list[str]) -> None:
    """In the repository, tutorials lie beside `docs`, in the site inside it."""
    source[0] = re.sub(r"\]\(\.\./((?:\.\./)*tutorials/)", r"](\1", source[0])


def setup(app: Any) -> None:
    """Before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", _prose_returns, priority=400)
    app.connect("source-read", _copied_tutorials)


def _api(name: str) -> str:
    """Everything in the `__all__` of a public submodule: nothing public can be left out."""
    module = import_module(f"hadmst_sc.{name}")
    summary = (inspect.getdoc(module) or "").split("\n\n")[0]
    table = ["", ".. autosummary::", "    :nosignatures:", "", *(f"    {member}" for member in module.__all__), ""]
    for member in module.__all__:
        thing = getattr(module, member)
        kind = "autoclass" if inspect.isclass(thing) else "autofunction" if callable(thing) else "autodata"
        table += [f".. {kind}:: {member}", *["    :members:"] * inspect.isclass(thing), ""]
    listing = "\n".join([f".. currentmodule:: hadmst_sc.{name}", *(table if module.__all__ else [])])
    return f"# `hd.{name}`\n\n{summary}\n\n```{{eval-rst}}\n{listing}\n```\n"


def _model_card() -> str:
    card = ROOT / "src" / "hadmst_sc" / "models" / "_weights" / "default.md"
    if not card.exists():
        return "# Model card\n\nThis checkout bundles no weights; `model=None` gives the closed form.\n"
    text = card.read_text()
    return text if text.startswith("# ") else f"# Model card\n\n{text}"


def _benchmarks() -> str:
    """One figure and one table; all other results are linked as files."""
    results = ROOT / "benchmarks" / "results"
    if not (results / "full" / "headline.md").exists():
        return "No results have been written yet.\n"
    shutil.copy(results / "full" / "headline.png", HERE / "_generated" / "headline.png")
    files = [path.relative_to(ROOT) for path in [*sorted(results.glob("full/*.md")), *sorted(results.glob("*.md"))]]
    links = [f"- [`{path.relative_to('benchmarks/results')}`]({REPOSITORY}/blob/main/{path})" for path in files]
    text = (results / "full" / "headline.md").read_text()
    return "\n".join(
        ["![PCC per task and set](_generated/headline.png)\n", text, "All results, as files:\n", *links, ""]
    )


def _rooms(rooms: dict[str, dict[str, Any]]) -> str:
    """The table of rooms, in the order in which they build on each other."""

    def code(names: list[str]) -> str:
        return ", ".join(f"`{name or 'hadmst_sc'}`" for name in names)

    rows = [
        f"| `{name}` | {row['job']} | {code(row['imports'])} | {code(row['libraries'])} |"
        for name, row in rooms.items()
    ]
    return "\n".join(["| room | job | may import | libraries |", "|---|---|---|---|", *rows, ""])


def _write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


(HERE / "_generated").mkdir(exist_ok=True)
_table = tomllib.loads((HERE / "concepts" / "architecture.toml").read_text())
_public = {*hadmst_sc.__all__, "train", "cli"}
_write_if_changed(HERE / "_generated" / "rooms.md", _rooms(_table["rooms"]))
_write_if_changed(HERE / "_generated" / "rooms.svg", pictures.rooms_svg(_table["rooms"], _public))
_write_if_changed(HERE / "_generated" / "way.svg", pictures.way_svg(_table["way"]))
(HERE / "reference" / "api").mkdir(exist_ok=True)
for _name in hadmst_sc.__all__:
    if _name != "__version__":
        _write_if_changed(HERE / "reference" / "api" / f"{_name}.md", _api(_name))
_write_if_changed(HERE / "_generated" / "model_card.md", _model_card())
_write_if_changed(HERE / "_generated" / "benchmarks.md", _benchmarks())
_write_if_changed(HERE / "_generated" / "changelog.md", (ROOT / "CHANGELOG.md").read_text())
_tutorials = re.findall(r"^tutorials/(\w+)$", (HERE / "index.md").read_text(), re.MULTILINE)
_notebooks = [ROOT / "tutorials" / f"{name}.ipynb" for name in _tutorials]
_write_if_changed(HERE / "_generated" / "cards.md", cards.grid(_notebooks, HERE / "_generated" / "cards"))
(HERE / "tutorials").mkdir(exist_ok=True)
for _notebook in (ROOT / "tutorials").glob("*.ipynb"):
    # Links hold in the repository, where pages lie under docs/, and here.
    _write_if_changed(HERE / "tutorials" / _notebook.name, _notebook.read_text().replace("(../docs/", "(../"))
