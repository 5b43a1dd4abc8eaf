"""Sixty ways to be malformed: a clear error of ours, or a finite result; never a traceback from a dependency."""

from __future__ import annotations

import runpy
import traceback
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from hadmst_sc import tl

FOLDER = Path(__file__).parents[1] / "io"
HELPERS = runpy.run_path(str(FOLDER / "conftest.py"))
ERRORS = runpy.run_path(str(FOLDER / "test_read_errors.py"))
visium_section, fingerprint = HELPERS["visium_section"], HELPERS["fingerprint"]
edit, edit_x, image, CASES = (ERRORS[name] for name in ("edit", "edit_x", "image", "CASES"))
RGB = np.random.default_rng(0).integers(100, 220, (3, 400, 320))


def zero(rows, columns):
    def change(table):
        x = table.X.toarray()
        x[rows, columns] = 0
        table.X = sparse.csr_matrix(x)

    return edit(change)


def rename(name):
    return edit(lambda table: setattr(table, "var_names", [name, *table.var_names[1:]]))


def dense(dtype):
    return edit(lambda table: setattr(table, "X", table.X.toarray().astype(dtype)))


# name: (change of a fresh section, arguments); what comes of each has to be finite
ODD = {
    "a gene of zeros": (zero(slice(None), 0), {}),
    "a spot of zeros": (zero(0, slice(None)), {}),
    "zeros alone": (zero(slice(None), slice(None)), {}),
    "one gene": (None, {"genes": ["gene-1"]}),
    "a constant image": (image(np.full((3, 400, 320), 200, np.uint8)), {}),
    "a black image": (image(np.zeros((3, 400, 320), np.uint8)), {}),
    "noise for an image": (image(RGB.astype(np.uint8)), {}),
    "RGBA": (image(np.concatenate([RGB, RGB[:1]]).astype(np.uint8)), {}),
    "16 bit": (image((RGB * 256).astype(np.uint16)), {}),
    "float image": (image((RGB / 255).astype(np.float32)), {}),
    "a name that climbs": (rename("../x"), {}),
    "a name with a slash": (rename("a/b"), {}),
    "a name of 300 letters": (rename("x" * 300), {}),
    "counts in integers": (dense(np.int64), {}),
    "counts in double precision": (dense(np.float64), {}),
    "enormous counts": (edit(lambda table: setattr(table, "X", table.X * 1e6)), {}),
    "bins as large as spots": (None, {"bin_um": 55.0}),
}
BAD = {
    "n_samples": ({"n_samples": -1, "model": "default"}, ValueError),
    "consistency": ({"consistency": "strict"}, ValueError),
    "model": ({"model": "nonesuch"}, FileNotFoundError),
    "device": ({"device": "abacus"}, ValueError),
    "key_added": ({"key_added": "../x"}, ValueError),
    "key_added is an input": ({"key_added": "S1_full_image", "overwrite": True}, ValueError),
    "align": ({"align": "yes"}, ValueError),
    "batch_size": ({"batch_size": 0}, ValueError),
    "n_metagenes": ({"n_metagenes": 1}, ValueError),
}


def superresolve(sdata, **arguments):
    settings = {"image_key": "S1_full_image", "bin_um": 20.0, "model": None, "show_progress_bar": False}
    tl.superresolve(sdata, **(settings | arguments))


def check_refused(sdata, arguments, kind):
    before = fingerprint(sdata)
    with pytest.raises(kind) as caught:
        superresolve(sdata, **arguments)
    last = traceback.extract_tb(caught.value.__traceback__)[-1].filename
    assert "hadmst_sc" in last, f"raised in {last}"
    assert fingerprint(sdata) == before


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_read_is_refused_and_nothing_changes(name):
    change, arguments, kind, _ = CASES[name]
    arguments = dict(arguments)
    sdata = visium_section(xy=arguments.pop("xy", None))
    if change:
        change(sdata)
    check_refused(sdata, arguments, kind)


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused_and_nothing_changes(name):
    arguments, kind = BAD[name]
    check_refused(visium_section(), arguments, kind)


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_gives_a_finite_result_and_leaves_the_inputs(name):
    change, arguments = ODD[name]
    sdata = visium_section()
    if change:
        change(sdata)
    before = fingerprint(sdata)
    superresolve(sdata, **arguments)
    table = sdata["superres_table"]
    assert np.isfinite(table.X).all() and (table.X >= 0).all()
    after = fingerprint(sdata)
    assert {key: after[key] for key in before if key != "attrs"} == {k: v for k, v in before.items() if k != "attrs"}


def test_they_are_sixty():
    assert len(CASES) + len(BAD) + len(ODD) >= 60
