"""Each remedy that a message prints is typed as it stands, and the same call then gives what is known to be right.

What concerns reading a section (counts, genes, spots, coordinates) is tested in `tests/io`.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pytest
import spatialdata

import hadmst_sc as hd

IMAGE = "phantom_full_image"
Scope = dict[str, Any]


def codes_in(message: str) -> list[str]:
    """The codes of a message that can be typed: assignments, arguments, or calls."""
    return [code for code in re.findall(r"`([^`]+)`", message) if re.search(r"[=(]", code)]


def code_in(message: str) -> str:
    """The last code of a message that can be typed."""
    return codes_in(message)[-1]


def typed(call: str, remedy: str, scope: Scope) -> Any:
    """Result of a call after its remedy."""
    return eval(retyped(call, remedy, scope), scope)


def retyped(call: str, remedy: str, scope: Scope) -> str:
    """The call after its remedy: arguments replace those of the call, statements are run before it."""
    try:
        arguments = ast.parse(f"f({remedy})", mode="eval").body.keywords
    except SyntaxError:
        arguments = []
    if not arguments or re.match(r"[\w.]+\(", remedy):
        exec(remedy, scope)
        return call
    tree = ast.parse(call, mode="eval").body
    names = inspect.signature(eval(ast.unparse(tree.func), scope)).parameters
    given = [ast.keyword(name, value) for name, value in zip(names, tree.args, strict=False)] + tree.keywords
    new = {one.arg for one in arguments}
    tree.args, tree.keywords = [], [one for one in given if one.arg not in new] + arguments
    return ast.unparse(tree)


@cache
def _section() -> spatialdata.SpatialData:
    return hd.datasets.phantom(n_genes=4, size_um=600.0)


def section(**changes: Any) -> Scope:
    """A section, and what its user has imported."""
    base = _section()
    sdata = spatialdata.SpatialData.init_from_elements({name: element for _, name, element in base.gen_elements()})
    sdata["table"] = base["table"].copy()
    return {"sdata": sdata, "hd": hd, "hadmst_sc": hd, "spatialdata": spatialdata, "np": np, "plt": plt} | changes


def solved(**options: Any) -> Scope:
    """A section with a result of the closed form in bins of 20 µm."""
    scope = section()
    how = {"model": None, "bin_um": 20.0, "show_progress_bar": False, "align": False} | options
    hd.tl.superresolve(scope["sdata"], IMAGE, **how)
    return scope


def cells() -> Scope:
    """One cell of one molecule in the middle of each square of 20 µm."""
    xy = 20.0 * np.stack(np.meshgrid(np.arange(30), np.arange(30)), -1).reshape(-1, 2) + 10
    table = ad.AnnData(np.ones((len(xy), 1), np.float32), obsm={"spatial": xy})
    return section(cells=table)


def panels(expected: tuple[int, ...]) -> Callable[[Any, Scope], None]:
    """As many panels as asked for, each with a picture."""

    def truth(axes: Any, scope: Scope) -> None:
        assert np.shape(axes) == expected
        assert all(ax.images or ax.collections or ax.lines for ax in np.ravel(axes))

    return truth


def has_free(name: str) -> Callable[[Any, Scope], None]:
    """The result is there under a name of its own, and the input as it was."""

    def truth(_: Any, scope: Scope) -> None:
        sdata = scope["sdata"]
        assert np.nansum(sdata[name].data) == pytest.approx(sdata[f"{name}_table"].X.sum(), rel=1e-5)
        np.testing.assert_array_equal(sdata["table"].X.toarray(), _section()["table"].X.toarray())

    return truth


def counted(n_spots: int, n_counts: int) -> Callable[[Any, Scope], None]:
    """So many spots, with so many counts in all."""

    def truth(spots: Any, scope: Scope) -> None:
        spots = spots[0] if isinstance(spots, tuple) else spots
        assert spots.n_obs == n_spots and spots.X.sum() == n_counts

    return truth


def remade(scope: Scope, genes: list[str] | None = None, key: str = "superres") -> None:
    """The result was made again: of the same bins, of these genes, with the sums that were counted."""
    table, counted = scope["sdata"][f"{key}_table"], _section()["table"]
    assert set(table.var_names) == set(genes or counted.var_names)
    assert table.uns["hadmst_sc"]["bin_um"] == 20.0
    np.testing.assert_allclose(
        table.var["spot_counts"], np.ravel(counted[:, table.var_names].X.sum(0)), err_msg="counts of the spots"
    )


def layers(scope: Scope, *names: str) -> list[np.ndarray]:
    return [scope["sdata"]["superres_table"].layers[name] for name in names]


def without(scope: Scope, name: str) -> Scope:
    del scope["sdata"][name]
    return scope


def without_columns(scope: Scope) -> Scope:
    del scope["sdata"]["superres_table"].var["reliability"]
    return scope


def renamed_table(scope: Scope) -> Scope:
    scope["sdata"]["other"] = scope["sdata"]["superres_table"]
    return without(scope, "superres_table")


RUN = f"hd.tl.superresolve(sdata, {IMAGE!r}, model=None, bin_um=20.0, align=False, show_progress_bar=False"
# The scope, the call that fails, a part of its message, and what must hold of its result after the remedy.
REMEDIES: dict[str, tuple[Callable[[], Scope], str, str, Callable[[Any, Scope], None]]] = {
    "axes of another shape": (
        solved,
        "hd.pl.superresolve(sdata, 'visible_000', axes=plt.subplots(1, 5)[1])",
        "`axes` needs (genes, panels) = (1, 4) Axes, but has (5,)",
        panels((1, 4)),
    ),
    "axes of reliability": (
        solved,
        "hd.pl.reliability(sdata, axes=plt.subplots(1, 3)[1])",
        "`axes` needs two Axes, but has 3",
        panels((2,)),
    ),
    "no gene named": (
        solved,
        "hd.pl.reliability(sdata, n_genes=0)",
        "`n_genes`",
        panels((2,)),
    ),
    "no panel": (
        solved,
        "hd.pl.superresolve(sdata, 'visible_000', panels=['three'])",
        "`panels` needs some of",
        panels((1, 4)),
    ),
    "no result to compare": (
        solved,
        "hd.pl.compare(sdata, keys=[])",
        "`keys` needs the name of at least one result",
        panels((3, 2)),
    ),
    "a gene that was not asked for": (
        lambda: solved(genes=["visible_000"]),
        "hd.pl.superresolve(sdata, genes='region_001')",
        "`genes` needs names that were super-resolved, but ['region_001']",
        lambda axes, scope: (panels((1, 4))(axes, scope), remade(scope, ["visible_000", "region_001"])),
    ),
    "a gene that nobody counted": (
        solved,
        "hd.pl.superresolve(sdata, genes='ACTB')",
        "but ['ACTB'] is not in",
        panels((1, 4)),
    ),
    "quantiles without standard deviation": (
        lambda: solved(with_std=False),
        "hd.tl.quantiles(sdata)",
        "has no layer 'std', because the run had `with_std=False`",
        lambda names, scope: (
            remade(scope),
            np.testing.assert_array_less(-1e-9, np.subtract(*layers(scope, "q0.95", "q0.05"))),
        ),
    ),
    "a registration that was left out": (
        lambda: solved(key_added="mine"),
        "hd.pl.registration(sdata, key_added='mine')",
        "needs a result whose H&E was registered",
        lambda axes, scope: (panels((2,))(axes, scope), remade(scope, key="mine")),
    ),
    "no result": (
        section,
        "hd.tl.summary(sdata, key_added='mine')",
        "there is no table 'mine_table'",
        lambda outcome, scope: np.testing.assert_array_equal(scope["sdata"]["mine_table"].n_vars, 4),
    ),
    "a result of another name": (
        lambda: solved(key_added="mine"),
        "hd.tl.summary(sdata)",
        "there is no table 'superres_table'",
        lambda outcome, scope: np.testing.assert_array_equal(
            set(outcome.genes.index), set(_section()["table"].var_names)
        ),
    ),
    "labels that are gone": (
        lambda: without(solved(), "superres_bins"),
        "hd.pl.superresolve(sdata, 'visible_000')",
        "labels/superres_bins: is missing",
        lambda axes, scope: (panels((1, 4))(axes, scope), remade(scope)),
    ),
    "columns that are gone": (
        lambda: without_columns(solved()),
        "hd.tl.summary(sdata)",
        "`var` lacks ['reliability']",
        lambda outcome, scope: remade(scope),
    ),
    "columns of the reliability that are gone": (
        lambda: without_columns(solved()),
        "hd.pl.reliability(sdata)",
        "`var` lacks ['reliability']",
        panels((2,)),
    ),
    "a name that is taken": (
        solved,
        f"{RUN})",
        "names that are free, but the object has",
        has_free("superres"),
    ),
    "a name of an input that is not to be replaced": (
        section,
        f"{RUN}, key_added='table')",
        "names that are free, but the object has tables/table",
        has_free("table_2"),
    ),
    "a name of an input": (
        section,
        f"{RUN}, key_added='table', overwrite=True)",
        "which no earlier run wrote",
        has_free("table_2"),
    ),
    "a name that is no name": (
        section,
        f"{RUN}, key_added='a/b')",
        "`key_added` needs at most 200 letters",
        has_free("superres"),
    ),
    "spots that overlap": (
        cells,
        "hd.pp.degrade(cells, spot_um=60.0, pitch_um=20.0)",
        "`pitch_um`",
        lambda spots, scope: counted(spots.n_obs, int(spots.obs["n_cells"].sum()))(spots, scope),
    ),
    "a split of more than all": (
        cells,
        "hd.pp.degrade(cells, split=1.5)",
        "`split` needs",
        lambda both, scope: (
            np.testing.assert_array_less(0, both[0].X.sum()),
            np.testing.assert_array_equal(both[1].n_obs, 900),
        ),
    ),
    "bins that do not tile": (
        section,
        "hd.datasets.phantom(n_genes=2, size_um=605.0, bin_um=10.0)",
        "`size_um` needs to be a multiple",
        lambda sdata, scope: np.testing.assert_array_equal(sdata["table"].n_vars, 2),
    ),
    "a window of the score that is too wide": (
        lambda: section(truth=np.random.default_rng(0).poisson(2.0, (1, 16, 16)), inside=np.ones((16, 16), bool)),
        "hd.metrics.ssim(truth, truth, inside, sigma=4.0)",
        "`inside` needs a map of at least 29 × 29 bins",
        lambda score, scope: np.testing.assert_allclose(score, 1),
    ),
}


@pytest.mark.parametrize("name", REMEDIES)
def test_the_printed_remedy_works_when_it_is_typed(name):
    make, call, words, truth = REMEDIES[name]
    scope = make()
    with pytest.raises((ValueError, KeyError, TypeError)) as raised:
        eval(call, scope)
    message = str(raised.value.args[0])
    assert words in message
    truth(typed(call, code_in(message), scope), scope)


def test_a_result_whose_table_was_renamed_is_made_again_under_a_free_name():
    scope = renamed_table(without(solved(), "superres_bins"))
    with pytest.raises(KeyError, match="labels/superres_bins: is missing") as raised:
        hd.tl.bins_to_shapes(scope["sdata"], key_added="other")
    exec(code_in(raised.value.args[0]), scope)
    remade(scope, key="superres_2")
    assert len(hd.tl.bins_to_shapes(scope["sdata"], key_added="superres_2") or [1])
