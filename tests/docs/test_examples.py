"""What the documentation shows is run, and prints what is printed there: docstrings, the README, the first run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from PIL import Image
from spatialdata import SpatialData, deepcopy
from spatialdata.models import ShapesModel
from spatialdata.transformations import Identity

import hadmst_sc as hd
from hadmst_sc.datasets import download
from hadmst_sc.datasets.visium import as_visium
from hadmst_sc.phantom.simulate import simulate

ROOT = Path(__file__).parents[2]
SERVER = runpy.run_path(str(ROOT / "tests" / "datasets" / "server.py"))
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = {name: importlib.import_module(f"hadmst_sc.{name}") for name in hd.__all__ if name != "__version__"}
PUBLIC = [
    f"{submodule}.{name}"
    for submodule, module in MODULES.items()
    for name in module.__all__
    if callable(getattr(module, name))
]


def run_examples(name: str, **names: Any) -> dict[str, Any]:
    """Run the examples of a docstring; the names that they know afterwards."""
    submodule, member = name.split(".")
    thing = getattr(MODULES[submodule], member)
    (test,) = doctest.DocTestFinder(recurse=False).find(thing, name, globs={"hd": hd, "np": np, **names})
    assert test.examples and not any(doctest.SKIP in example.options for example in test.examples)
    output: list[str] = []
    failed = doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=output.append, clear_globs=False).failed
    assert not failed, "".join(output)
    return test.globs


def python_blocks(page: str) -> list[str]:
    """The Python of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


@pytest.fixture(scope="module")
def solved() -> SpatialData:
    """The section that the example of `tl.superresolve` makes, to which the other examples refer."""
    return run_examples("tl.superresolve")["sdata"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working directory, but for `sections`: stand-ins for two public sections, in their form."""
    sections = tmp_path / "sections"
    for name, spot_um in (("her2st/C2", 100.0), ("xenium_mouse_brain/cells", 0.0)):
        table = AnnData(np.ones((3, 2), np.int32), obsm={"spatial": np.array([[20, 20], [60, 20], [40, 60]])})
        if spot_um:
            table.uns = {"he_mpp": 5.0, "spot_diameter_um": spot_um, "pitch_um": 200.0}
        (sections / name).parent.mkdir(parents=True)
        table.write_h5ad(sections / f"{name}.h5ad")
    Image.fromarray(np.zeros((80, 80, 3), np.uint8)).save(sections / "her2st" / "C2.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder of made-up sections in place of those of 10x Genomics, and these sections with their sha256."""
    path = tmp_path_factory.mktemp("published")
    return path, SERVER["publish"](path, simulate(3, size_um=600.0, n_genes=4, augment=False))


@pytest.fixture
def online(published, tmp_path, monkeypatch):
    """A server of these sections, and a cache of the test's own."""
    with SERVER["serving"](published[0]) as (url, _):
        monkeypatch.setattr(download, "SERVER", url)
        monkeypatch.setattr(download, "SAMPLES", published[1])
        monkeypatch.setenv("HADMST_CACHE", str(tmp_path / "cache"))
        yield


@pytest.mark.parametrize("name", [name for name in PUBLIC if name != "tl.superresolve"])  # which `solved` runs
def test_the_examples_of_a_docstring_print_what_they_say(name, solved, online, folder):
    run_examples(name, sdata=deepcopy(solved))


def test_the_first_run_runs(folder):
    blocks = python_blocks("docs/getting_started.md")
    assert len(blocks) == 1
    exec(blocks[0], {})


@pytest.mark.filterwarnings("ignore::UserWarning")  # of the reader and of squidpy
def test_the_readme_runs_as_it_stands(online, folder):
    (block,) = python_blocks("README.md")
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["bins"] is names["sdata"].tables["superres_table"] and np.isfinite(names["bins"].X).all()


def test_the_page_on_cell_types_runs_on_a_section_with_abundances(folder, monkeypatch):
    drawn = hd.datasets.phantom(n_genes=4, size_um=600.0, augment=False)
    table, radius = drawn.tables["table"].copy(), drawn["phantom"].radius.iloc[0]
    del table.uns["spatialdata_attrs"]
    sdata = as_visium("section", drawn["phantom_full_image"]["scale0"]["image"].values, table, 2 * radius)
    table = sdata.tables["table"]
    types = pd.DataFrame(table.X.toarray() + 0.5, table.obs_names, list("ABCD"))
    table.obsm["q05_cell_abundance_w_sf"] = types.add_prefix("q05cell_abundance_w_sf_")
    types.div(types.sum(axis=1), axis=0).iloc[1:].to_csv("rctd_weights.csv")
    centres = np.random.default_rng(0).uniform(0, 240, (2000, 2))  # the pixels of a phantom show no nuclei
    nuclei = ShapesModel.parse(centres, geometry=0, radius=2.0, transformations={"section": Identity()})
    monkeypatch.setattr(hd.pp, "find_nuclei", lambda sdata, _: sdata.shapes.update(nuclei=nuclei))
    names: dict[str, Any] = {"hd": hd, "sdata": sdata}
    for block in python_blocks("docs/how_to/cell_types.md"):
        exec(block, names)
    assert sdata.tables["types_table"].var_names.tolist() == list("ABCD")
    read = sdata.tables["table"]
    assert read.n_obs == table.n_obs - 1 and list(read.obsm["cells"]) == list("ABCD")
    inside = (np.linalg.norm(read.obsm["spatial"][:, None] - centres, axis=-1) < radius).sum(1)
    assert np.abs(names["n_cells"] - inside).max() <= 1 and inside.mean() > 5  # a disc has corners there
    np.testing.assert_allclose(read.obsm["cells"].sum(axis=1), names["n_cells"])


@pytest.mark.notebook  # scanpy and squidpy compile for a minute
@pytest.mark.filterwarnings("ignore")  # of scanpy and squidpy
def test_the_page_on_analysis_runs_and_its_numbers_are_right(folder):
    names: dict[str, Any] = {}
    for block in python_blocks("docs/how_to/analysis.md"):
        exec(block, names)
    found, bins, bulk = names["found"], names["bins"], names["bulk"]
    assert found[["bins", "blocks", "spots"]].median().to_numpy() == pytest.approx([0.9, 0.5, 0.2], abs=0.05)
    least = found.loc[found["reliability"].idxmin()]
    assert least["bins"] == pytest.approx(0.9, abs=0.05) and least["spots"] < 0
    assert 1 < bins.obs["domain"].nunique() < 10 and names["known"].mean() > 0.9
    spots = names["spots"][names["spots"].obs["domain"].notna()]
    np.testing.assert_allclose(bulk.layers["sum"].sum(0), np.asarray(spots.X.sum(0)).ravel())


def test_the_first_picture_is_drawn_from_a_result(solved, monkeypatch):
    spec = importlib.util.spec_from_file_location("first_picture", ROOT / "docs" / "first_picture.py")
    picture = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(picture)
    frame = (100.0, 300.0, 250.0, 50.0)
    drawn = {"GENE": solved["superres_table"].var_names[0], "WHOLE": (0.0, 600.0, 600.0, 0.0), "ZOOM": frame}
    for name, value in drawn.items():
        monkeypatch.setattr(picture, name, value)
    *panels, scale = picture.draw(solved).axes
    assert [ax.get_title() for ax in panels] == [*picture.TITLES.values(), "", "", ""]
    assert [(*ax.get_xlim(), *ax.get_ylim()) for ax in panels[3:]] == [frame] * 3
    assert scale.get_ylabel() == "counts per bin"
