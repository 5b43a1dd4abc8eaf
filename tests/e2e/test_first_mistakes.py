"""The mistakes of the first hour: each message prints a remedy, and with it, as it stands, the same call succeeds.

What is wrong with a section itself is tested in `tests/io/test_remedies.py`.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import spatialdata
from spatialdata.models import Labels2DModel, PointsModel, ShapesModel
from spatialdata.transformations import Identity, get_transformation

import hadmst_sc as hd

HELPERS = runpy.run_path(str(Path(__file__).parents[1] / "reliability" / "test_remedies.py"))
Scope, codes_in, retyped, section, remade = (
    HELPERS[name] for name in ("Scope", "codes_in", "retyped", "section", "remade")
)
IMAGE = "phantom_full_image"
RUN = f"hd.tl.superresolve(sdata, {IMAGE!r}, model=None, bin_um=20.0, align=False, show_progress_bar=False)"
GENE = "visible_000"
MOST = 3  # remedies in a row: one message may lead to the next


def run(**given: Any) -> str:
    """The call of a run with some arguments of its own, as source."""
    return retyped(RUN, ", ".join(f"{name}={value}" for name, value in given.items()), {"hd": hd})


@cache
def _solved() -> spatialdata.SpatialData:
    scope = section()
    eval(RUN, scope)
    return scope["sdata"]


def solved() -> dict[str, Any]:
    """A section with a result, of which the table is the caller's own."""
    elements = {name: element for _, name, element in _solved().gen_elements()}
    tables = {name: _solved()[name].copy() for name in ("table", "superres_table")}
    return section(sdata=spatialdata.SpatialData.init_from_elements(elements | tables))


def after(code: str, make: Callable[[], Any] = section) -> Callable[[], Any]:
    """A section on which the user ran some code before."""

    def changed() -> Any:
        scope = make() | {"ad": ad, "pd": pd, "pandas": pd}
        exec(code, scope)
        return scope

    return changed


def with_cells(kind: Any, systems: dict[str, Any] | None = None, make: Callable[[], Any] = section) -> Any:
    """A section with four cells in pixels of the image."""

    def changed() -> Any:
        scope = make()
        sdata = scope["sdata"]
        where = systems or get_transformation(sdata[IMAGE], get_all=True)
        size = spatialdata.get_pyramid_levels(sdata[IMAGE], n=0).sizes
        xy = np.array([[0.4, 0.4], [0.6, 0.4], [0.4, 0.6], [0.6, 0.6]]) * [size["x"], size["y"]]
        if kind is ShapesModel:
            sdata["nuclei"] = ShapesModel.parse(xy, geometry=0, radius=6.0, transformations=where)
        elif kind is PointsModel:
            sdata["nuclei"] = PointsModel.parse(pd.DataFrame(xy, columns=["x", "y"]), transformations=where)
        else:
            drawn = np.zeros((size["y"], size["x"]), np.uint16)
            for number, (x, y) in enumerate(xy.astype(int), 1):
                drawn[y - 20 : y + 20, x - 20 : x + 20] = number
            sdata["nuclei"] = Labels2DModel.parse(drawn, dims=("y", "x"), transformations=where)
        return scope

    return changed


NORMALISED = """
table = sdata["{}"]
{}
table.X = np.log1p(table.X.toarray() / table.X.toarray().sum(1, keepdims=True) * 100)
""".format
COUNTED = NORMALISED("table", "table.layers['counts'] = table.X.copy()")
KEPT = NORMALISED("table", "table.raw = table.copy()")
SYMBOLS = "sdata['table'].var['gene_ids'] = [f'ENSG{i:011d}' for i in range(sdata['table'].n_vars)]"
ENSEMBL = (
    "t = sdata['table']; t.var['symbol'] = t.var_names.to_numpy(); t.var_names = [f'ENSG{i}' for i in range(t.n_vars)]"
)
TWICE = "names = list(sdata['table'].var_names); names[1] = names[0]; sdata['table'].var_names = names"
TYPES = (
    "t = sdata['table']; t.obsm['q05'] = pd.DataFrame(np.random.default_rng(0).gamma(2, 2, (t.n_obs, 3)), "
    "t.obs_names, ['T', 'B', 'NK'])"
)
PCA = "sdata['table'].obsm['X_pca'] = np.random.default_rng(0).normal(size=(sdata['table'].n_obs, 5))"
PLACES = "t = sdata['table']; t.obsm['spatial'] = np.c_[sdata['phantom'].geometry.x, sdata['phantom'].geometry.y]"
SHARES = f"{TYPES}; t.obsm['q05'] = t.obsm['q05'].div(t.obsm['q05'].sum(axis=1), axis=0)"
ONE_IMAGE = f"sdata = sdata.subset([{IMAGE!r}, 'phantom', 'table'])"


def genes(*expected: str) -> Callable[[Any, Any], None]:
    """The result has these genes, or all, with the counts of the section."""
    return lambda _, scope: remade(scope, list(expected) or None)


def drawn(*expected: str) -> Callable[[Any, Any], None]:
    """A row for each gene, named at its left."""

    def truth(axes: Any, _: Any) -> None:
        assert not expected or [row[0].get_ylabel() for row in axes] == list(expected)
        assert all(ax.images or ax.collections for ax in axes.ravel())

    return truth


def types(*expected: str) -> Callable[[Any, Any], None]:
    """The result has these types of cells."""
    return lambda _, scope: np.testing.assert_array_equal(scope["sdata"]["superres_table"].var_names, expected)


def written(path: str) -> Callable[[Any, Any], None]:
    """The file is there, and not empty."""

    def truth(*_: Any) -> None:
        assert Path(path).stat().st_size > 100

    return truth


def rows(n: int) -> Callable[[Any, Any], None]:
    """A table with so many rows, of finite numbers."""

    def truth(table: Any, _: Any) -> None:
        assert table.n_obs == n and np.isfinite(table.X).any(1).all()

    return truth


def bins(bin_um: float) -> Callable[[Any, Any], None]:
    return lambda _, scope: np.testing.assert_equal(scope["sdata"]["superres_table"].uns["hadmst_sc"]["bin_um"], bin_um)


# The scope, the call that fails, a part of its message, and what must hold after the remedies.
MISTAKES: dict[str, tuple[Callable[[], Any], str, str, Callable[[Any, Any], None]]] = {
    "an image that is not there": (after(ONE_IMAGE), run(image_key="'he'"), "is not in `sdata.images`", genes()),
    "an image as an array": (
        after(ONE_IMAGE),
        run(image_key=f"sdata[{IMAGE!r}]"),
        "`image_key` needs a name",
        genes(),
    ),
    "a table misspelt": (section, run(table_key="'tabel'"), "is not in `sdata.tables`", genes()),
    "the table of a result": (
        solved,
        run(table_key="'superres_table'", overwrite=True),
        "holds results of an earlier run",
        genes(),
    ),
    "log1p, with counts in a layer": (after(COUNTED), RUN, "log(1 + x)", genes()),
    "log1p, with counts in .raw": (after(KEPT), RUN, "`.raw` holds counts", genes()),
    "a layer misspelt": (after(COUNTED), run(layer="'count'"), "`layer='count'` is not in", genes()),
    "names that repeat": (
        after(TWICE),
        RUN,
        "gene names need to be unique",
        lambda _, scope: np.testing.assert_equal(scope["sdata"]["superres_table"].n_vars, 4),
    ),
    "a gene in another case": (section, run(genes=[GENE.upper()]), "other spellings", genes(GENE)),
    "an Ensembl id for a symbol": (after(SYMBOLS), run(genes=["ENSG00000000000"]), "`var['gene_ids']`", genes(GENE)),
    "a symbol for an Ensembl id": (
        after(ENSEMBL),
        run(genes=[GENE]),
        "`var['symbol']`",
        lambda _, scope: np.testing.assert_array_equal(scope["sdata"]["superres_table"].var_names, ["ENSG0"]),
    ),
    "one gene as text": (section, run(genes=repr(GENE)), "`genes` needs names", genes(GENE)),
    "more genes than there are": (section, run(genes=20_000), "`genes` needs 1 to 4", genes()),
    "bins of no size": (section, run(bin_um=0), "`bin_um` needs a positive length in µm, but is 0", bins(10)),
    "bins as text": (section, run(bin_um="'20'"), "but is '20'", bins(10)),
    "no jobs": (section, run(n_jobs=0), "`n_jobs` needs", genes()),
    "no such device": (section, run(device="'gpu'"), "`device='gpu'` is not available", genes()),
    "no such consistency": (section, run(consistency="'none'"), "`consistency` needs one of", genes()),
    "a registration as an argument": (
        after(f"found = hd.pp.register(sdata, {IMAGE!r}, bin_um=20.0, show_progress_bar=False)"),
        run(align="found"),
        "`align` needs one of",
        genes(),
    ),
    "cells misspelt": (with_cells(ShapesModel), run(cells_key="'nuclie'"), "Pass `cells_key='nuclei'`", genes()),
    "cells in another system": (
        with_cells(ShapesModel, {"global": Identity()}),
        run(cells_key="'nuclei'"),
        "shares no coordinate system",
        genes(),
    ),
    "cells of a result in another system": (
        with_cells(ShapesModel, {"global": Identity()}, solved),
        "hd.tl.to_cells(sdata, 'nuclei')",
        "shares no coordinate system",
        rows(4),
    ),
    "points without a run with them": (
        with_cells(PointsModel, None, solved),
        "hd.tl.to_cells(sdata, 'nuclei')",
        "points have no area",
        rows(4),
    ),
    "abundances misspelt": (after(TYPES), run(obsm_key="'q5'"), "Try `obsm_key='q05'`", types("T", "B", "NK")),
    "components for abundances": (after(PCA), run(obsm_key="'X_pca'"), "has values from -", genes()),
    "positions for abundances": (
        after(f"{TYPES}; {PLACES}"),
        run(obsm_key="'spatial'"),
        "as positions have",
        types("T", "B", "NK"),
    ),
    "proportions for abundances": (
        after(SHARES),
        run(obsm_key="'q05'"),
        "these are proportions",
        types("T", "B", "NK"),
    ),
    "a plot before the run": (section, "hd.pl.superresolve(sdata)", "there is no table 'superres_table'", drawn()),
    "a plot of a result misspelt": (
        solved,
        "hd.pl.superresolve(sdata, key_added='supperres')",
        "Try `key_added='superres'`",
        drawn(),
    ),
    "a plot of a gene in another case": (
        solved,
        f"hd.pl.superresolve(sdata, ['region_001', {GENE.upper()!r}])",
        "names that were super-resolved",
        drawn("region_001", GENE),
    ),
    "percentages": (
        solved,
        "hd.tl.quantiles(sdata, [5, 95])",
        "`quantiles` needs numbers between 0 and 1",
        lambda names, scope: np.testing.assert_array_equal(list(names.values()), ["q0.05", "q0.95"]),
    ),
    "regions misspelt": (solved, "hd.tl.regions(sdata, 'mesured')", "Pass `key='measured'`", rows(2)),
    "regions of measurements": (solved, "hd.tl.regions(sdata, 'covered')", "holds measurements", rows(4)),
    "regions of labels": (
        with_cells(Labels2DModel, None, solved),
        "hd.tl.regions(sdata, 'nuclei')",
        "Make shapes of these labels",
        rows(4),
    ),
    "cells of a gene in another case": (
        with_cells(ShapesModel, None, solved),
        f"hd.tl.to_cells(sdata, 'nuclei', genes=[{GENE.upper()!r}])",
        f"Pass `genes=['{GENE}']`",
        rows(4),
    ),
    "a TIFF without OME": (
        solved,
        "hd.io.export(sdata, 'maps.tif')",
        "needs one of the endings",
        written("maps.ome.tif"),
    ),
    "a file that is there": (
        after("open('bins.csv.gz', 'w').close()", solved),
        "hd.io.export(sdata, 'bins.csv.gz')",
        "bins.csv.gz exists",
        written("bins.csv.gz"),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_call_succeeds_with_the_remedy_that_its_message_prints(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, call, words, truth = MISTAKES[name]
    scope = make()
    scope |= {"anndata": ad, "numpy": np, "pandas": pd}  # named in full by messages
    with pytest.raises((ValueError, KeyError, TypeError)) as raised:
        eval(call, scope)
    message = str(raised.value.args[0])
    assert words in message
    for _ in range(MOST):
        *before, last = codes_in(message)
        for code in [before[-1], last] if "then pass" in message.split("`")[-3] else [last]:
            call = retyped(call, code, scope)
        try:
            result = eval(call, scope)
        except (ValueError, KeyError, TypeError) as error:
            message = str(error.args[0])
        else:
            truth(result, scope)
            return
    pytest.fail(message)


@pytest.mark.parametrize(("wrong", "right"), [("gene_list", "genes"), ("image", "image_key"), ("n_job", "n_jobs")])
def test_a_misspelt_argument_is_told_its_name(wrong, right):
    with pytest.raises(TypeError, match=rf"'{wrong}'. Did you mean `{right}`\?"):
        hd.tl.superresolve(section()["sdata"], IMAGE, **{wrong: None})


def test_a_model_that_is_not_there_is_told_the_bundled_ones():
    with pytest.raises(FileNotFoundError, match="`model=") as raised:
        eval(run(model="'best.safetensors'"), section())
    assert "'default'" in str(raised.value)


def test_a_normalised_result_needs_no_remedy():
    scope = with_cells(ShapesModel, None, solved)()
    sdata = scope["sdata"]
    found = [hd.tl.regions(sdata, "measured").X, hd.tl.to_cells(sdata, "nuclei").X]
    table = sdata["superres_table"]
    table.X = np.log1p(table.X / table.X.sum(1, keepdims=True) * 1e4)
    again = [hd.tl.regions(sdata, "measured").X, hd.tl.to_cells(sdata, "nuclei").X]
    np.testing.assert_array_equal(found[0], again[0])
    np.testing.assert_array_equal(found[1], again[1])
    drawn()(hd.pl.superresolve(sdata, GENE), scope)


def test_squidpy_draws_the_bins_as_squares_or_as_discs():
    sq = pytest.importorskip("squidpy")
    for shape in ("square", "circle"):
        ax = sq.pl.spatial_scatter(solved()["sdata"]["superres_table"], color=GENE, shape=shape, return_ax=True)
        assert ax.get_title() == GENE and ax.collections
