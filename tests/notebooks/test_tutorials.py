"""Every tutorial runs from top to bottom and gives its stored outputs: numbers to 2 %, pictures coarsely."""

from __future__ import annotations

import base64
import importlib.util
import re
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from PIL import Image

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))
NOTEBOOK_KB, ALL_KB = 300, 2000
DRAW_AND_PRINT = ("anndata", "matplotlib", "pandas", "scanpy", "spatialdata", "spatialdata-plot", "squidpy")

_spec = importlib.util.spec_from_file_location("run", ROOT / "tutorials" / "run.py")
run = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(run)

each = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def as_constrained() -> bool:
    """Whether libraries are those whose outputs are stored; others print and draw in their own way."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M))
    return all(version(name) == pins[name] for name in DRAW_AND_PRINT)


@pytest.mark.notebook
@pytest.mark.torch
@each
def test_tutorial_runs_and_gives_its_stored_outputs(path):
    if as_constrained():
        assert run.check(path) == ""
    else:
        run.execute(path)


@each
def test_tutorial_is_stored_without_what_changes_from_run_to_run(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert any(cell.outputs for cell in run.code_cells(notebook)), f"run `make tutorials`: {path.name} has no outputs"
    text = path.read_text()
    assert nbformat.writes(run.tidy(notebook)) + "\n" == text, "run `make tutorials`"
    shown = str([cell.outputs for cell in run.code_cells(notebook)])
    assert re.findall(r"/(?:home|root|tmp|Users)/\S+|\w*Warning|Traceback|\\x1b\[| at 0x[0-9a-f]+", shown) == []


@each
def test_tutorial_asks_a_question_and_says_what_not_to_conclude(path):
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    assert re.match(r"# .+\n\n\*\*.+\?\*\*", texts[0])
    assert "## What not to conclude\n\n- **No" in texts[-1]
    assert re.search(rf"^tutorials/{path.stem}$", (ROOT / "docs" / "index.md").read_text(), re.M)


def test_tutorials_are_small():
    kb = {path.stem: path.stat().st_size / 1000 for path in TUTORIALS}
    assert {name: size for name, size in kb.items() if size > NOTEBOOK_KB} == {}
    assert sum(kb.values()) < ALL_KB


def png(values: np.ndarray) -> str:
    file = BytesIO()
    Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)).save(file, "png")
    return base64.b64encode(file.getvalue()).decode()


def differs(stored, found, tags=()) -> str:
    """How the outputs of a cell differ; empty if they agree."""
    both = [
        new_notebook(cells=[new_code_cell("f()", id="one", metadata={"tags": list(tags)}, outputs=[output])])
        for output in (stored, found)
    ]
    return "".join(how for _, how in run.differences(*both))


def text(value: str):
    return new_output("stream", name="stdout", text=value)


def picture(values: np.ndarray):
    return new_output("display_data", {"image/png": png(values)})


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ("gene  0.50\n", "gene   0.51\n"),  # one of the last digit
        ("deviance 1234", "deviance 1250"),
        ("-0.00 0.1", "0.00 0.10"),
        ("takes 3 s, 0.5 GB", "takes 11 s, 1.2 GB"),
        ("version 0.1.0", "version 0.2.0.dev1"),
        ("14,400 bins", "14,500 bins"),
    ],
)
def test_last_digits_white_space_times_and_versions_do_not_count(stored, found):
    assert differs(text(stored), text(found)) == ""


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        ("gene 0.50", "gene 0.52"),
        ("3 clusters", "4 clusters"),
        ("gene_1 0.5", "gene_2 0.5"),
        ("0.5", "0.5 0.5"),
        ("0.50", "nan"),
        ("True", "False"),
        ("1e-03", "1e-05"),
        ("0.30", "-0.30"),
    ],
)
def test_other_numbers_and_words_count(stored, found):
    assert f"stored `… {stored} …`, found `… {found} …`" == differs(text(stored), text(found))


def test_tables_are_compared_by_their_cells():
    table = "<table id='{}'><td>{}</td></table>"
    first, same, other = (
        new_output("execute_result", {"text/html": table.format(name, value), "text/plain": "x"})
        for name, value in (("a", 0.5), ("b", 0.5), ("a", 0.9))
    )
    assert differs(first, same) == ""
    assert "found `… 0.9 …`" in differs(first, other)


def test_pictures_may_differ_in_noise_but_not_in_what_they_show():
    y, x = np.mgrid[:200, :300]
    wave = 128 + 100 * np.sin(x / 40)
    noise = np.random.default_rng(0).normal(0, 8, wave.shape)
    assert differs(picture(wave), picture(wave + noise)) == ""
    assert differs(picture(wave), picture(np.roll(wave, 1, axis=1))) == ""
    assert differs(picture(wave), picture(wave[:-3, :-3])) == ""
    assert "grey of patches" in differs(picture(wave), picture(128 + 100 * np.sin(y / 40)))
    assert "grey of patches" in differs(picture(wave), picture(np.where((x < 20) & (y < 20), 255, wave)))
    assert "stored a picture of (300, 200) pixels, found (300, 150)" in differs(picture(wave), picture(wave[:150]))


def test_cells_that_change_keep_the_kind_of_their_outputs():
    assert differs(text("step 1"), text("step 2 of 7"), tags=["changes"]) == ""
    found = differs(text("step 1"), picture(np.zeros((9, 9))), tags=["changes"])
    assert found == "stored text, found image/png"


def test_stored_outputs_are_tidy_and_stay_until_the_result_changes(tmp_path):
    path = tmp_path / "made.ipynb"
    sources = [
        "import sys, time, warnings\nprint('took', time.perf_counter(), 's')\nprint('noise', file=sys.stderr)",
        "import matplotlib.pyplot as plt\nwarnings.warn('a library')\nplt.plot([0, 1]);",
        "from IPython.display import display\ndisplay({'application/vnd.jupyter.widget-view+json': {}}, raw=True)",
        "1 / 2 + time.perf_counter() * 1e-9",
    ]
    nbformat.write(new_notebook(cells=[new_code_cell(source, id=f"c{i}") for i, source in enumerate(sources)]), path)
    assert run.store(path) == ["c0", "c1", "c3"]
    stored = nbformat.read(path, as_version=4)
    kinds = [[list(one.get("data", {"stdout": 0})) for one in cell.outputs] for cell in stored.cells]
    assert kinds == [[["stdout"]], [["image/png"]], [], [["text/plain"]]]
    before = path.read_bytes()
    assert run.store(path) == [] and path.read_bytes() == before
    path.write_text(path.read_text().replace('"0.5', '"0.7'))
    said = run.check(path)
    assert re.search(rf"{tmp_path.name}/made.ipynb, cell c3: stored `… 0\.7\S* …`, found `… 0\.5\S* …`\n", said)
    assert said.endswith("run `make tutorials` and look at every new output.")
