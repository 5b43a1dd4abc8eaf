"""Three hundred ways to be malformed: one clear error of ours, or a finite result; never a dependency's traceback."""

from __future__ import annotations

import runpy
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hadmst_sc import pp, tl
from hadmst_sc.io.resolve import levels

TABLE = runpy.run_path(str(Path(__file__).with_name("malformed.py")))
Case, visium_section, fingerprint = (TABLE[name] for name in ("Case", "visium_section", "fingerprint"))
READ_ERRORS = TABLE["ERRORS"]["CASES"]
IMAGE = "S1_full_image"


def refused() -> Iterator[tuple[str, tuple]]:
    """Every input that cannot be, by name."""
    for argument, values in TABLE["ARGUMENTS"].items():
        for number, value in enumerate(values):
            yield f"{argument} {number}", Case(None, {argument: value}, argument)
    for kind in ("TABLES", "SPOTS", "IMAGES", "MASKS"):
        for name, case in TABLE[kind].items():
            yield f"{kind.lower()}: {name}", case
    for name, (change, arguments, _, _) in READ_ERRORS.items():
        if "xy" not in arguments:
            yield f"reading: {name}", Case(change, arguments, "")


REFUSED = dict(refused())
WITH_NETWORK = set(list(REFUSED)[::3])  # the rest without: what is refused is refused before a network is loaded
ODD = {name: change for kind in ("FINE_TABLES", "FINE_SPOTS", "FINE_IMAGES") for name, change in TABLE[kind].items()}
WITH_A_NETWORK = set(list(ODD)[::3])  # these compute: a run with gate and samples takes seconds
NAMED = ("`", "images/", "labels/", "shapes/", "tables/")


@pytest.fixture(scope="module")
def unchanged():
    """A section for all arguments: each test checks that it is as it was."""
    return visium_section()


def superresolve(sdata, **arguments):
    settings = {"image_key": IMAGE, "bin_um": 20.0, "show_progress_bar": False}
    tl.superresolve(sdata, **(settings | arguments))


def state(sdata):
    """All that a user could see; of what cannot be read which objects there are."""
    if any(np.prod(level.shape) > 10**7 for one in sdata.images.values() for level in levels(one)):
        return {name: id(element) for _, name, element in sdata.gen_elements()}
    try:
        return fingerprint(sdata)
    except Exception:  # noqa: BLE001 - some of the changes make elements that no library reads
        return {name: id(element) for _, name, element in sdata.gen_elements()}


def check_error(error: BaseException, names: str) -> None:
    """Ours, with the name of what is wrong."""
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    assert "hadmst_sc" in last, f"raised in {last}"
    assert isinstance(error, KeyError | ValueError | TypeError | OSError)
    assert names in str(error) and any(mark in str(error) for mark in NAMED), str(error)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_name_and_nothing_changes(name, unchanged):
    change, arguments, names = REFUSED[name]
    sdata = visium_section() if change else unchanged
    if change:
        change(sdata)
    before = state(sdata)
    how = {} if name in WITH_NETWORK else {"model": None}
    with pytest.raises(Exception) as caught:
        superresolve(sdata, **how | arguments)
    check_error(caught.value, names)
    assert state(sdata) == before


@pytest.mark.parametrize("kind", TABLE["SDATA"])
def test_what_is_no_spatialdata_is_named(kind):
    with pytest.raises(TypeError, match="`sdata` needs a SpatialData") as caught:
        superresolve(TABLE["SDATA"][kind])
    check_error(caught.value, "`sdata`")


@pytest.mark.parametrize("name", ODD)
def test_what_is_odd_gives_a_finite_result_and_leaves_the_inputs(name):
    sdata = visium_section()
    if ODD[name]:
        ODD[name](sdata)
    before = fingerprint(sdata)
    network = name in WITH_A_NETWORK
    superresolve(
        sdata,
        **{"genes": min(3, sdata["table"].n_vars)} if network else {"model": None, "align": False},
    )
    table = sdata["superres_table"]
    assert np.isfinite(table.X).all() and (table.X >= 0).all()
    assert not network or (np.isfinite(table.layers["std"]).all() and "share" in table.uns["hadmst_sc"]["gate"])
    after = fingerprint(sdata)
    assert {key: after[key] for key in before if key != "attrs"} == {k: v for k, v in before.items() if k != "attrs"}


@pytest.mark.parametrize("name", ["table: NaN", "bin_um 0", "masks: a line", "image_key 3"])
def test_validate_reports_what_superresolve_raises(name):
    change, arguments, _ = REFUSED.get(name, REFUSED["tables: NaN"])
    sdata = visium_section()
    if change:
        change(sdata)
    report = pp.validate(sdata, **{"image_key": IMAGE, "bin_um": 20.0} | arguments)
    with pytest.raises(Exception) as caught:
        superresolve(sdata, model=None, **arguments)
    assert not report.ok and "please report" not in str(report)
    assert any(finding.message in str(caught.value) for finding in report.findings)


def test_they_are_three_hundred():
    assert len(REFUSED) + len(ODD) + len(TABLE["SDATA"]) >= 300
    assert 3 * (len(WITH_NETWORK) + len(WITH_A_NETWORK)) >= len(REFUSED) + len(ODD)
