"""The report before a run: what superresolve would raise or log is in it, with its remedy, and it never raises."""

from __future__ import annotations

import ast
import logging
from importlib.util import find_spec

import numpy as np
import pytest
import spatialdata as sd
from spatialdata.models import Image2DModel
from spatialdata.transformations import get_transformation

from hadmst_sc import datasets, pp
from hadmst_sc.alignment.register import AFFINES, TURNS
from hadmst_sc.io import read_observation
from hadmst_sc.section.features import he_features
from hadmst_sc.section.measurement import pool

IMAGE = "phantom_full_image"


def phantom(**options):
    return datasets.phantom(seed=3, size_um=1200.0, n_genes=16, depth=(2.0, 40.0), augment=False, **options)


@pytest.fixture(scope="module")
def section():
    return phantom(misregistration_um=(0.0, 0.0))


def with_image(section, pixels: np.ndarray):
    """The same section with other pixels in place of the H&E."""
    old = section[IMAGE]["scale0"]["image"]
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), transformations=get_transformation(old, get_all=True))
    elements = {name: element for _, name, element in section.gen_elements() if name != IMAGE}
    return sd.SpatialData.init_from_elements({**elements, IMAGE: image})


def pixels_of(section) -> np.ndarray:
    return section[IMAGE]["scale0"]["image"].to_numpy()


def messages(report: pp.Report, severity: str) -> str:
    return "\n".join(finding.message for finding in report.findings if finding.severity == severity)


def test_a_good_section_is_ready_and_its_numbers_are_shown(section):
    report = pp.validate(section, IMAGE)
    assert report.ok and not messages(report, "warning")
    facts, table = report.facts, section["table"]
    assert (facts["spot_um"], facts["pitch_um"], facts["spots"], facts["genes"]) == (55.0, 100.0, *table.shape)
    assert facts["median_counts_per_spot"] == np.median(table.X.toarray().sum(1))
    assert 0 < facts["genes_usable"] <= table.n_vars and facts["spots_on_tissue"] == "unknown"  # it shows no glass
    assert ("of memory" if find_spec("torch") else "torch is not installed") in facts["cost"]
    assert report.alignment == pp.register(section, IMAGE)


@pytest.mark.torch
def test_the_cost_is_that_of_a_run_whose_components_come_from_other_genes_too(section, monkeypatch):
    from hadmst_sc.inference import cost

    seen = []
    monkeypatch.setattr(cost, "cost_of", lambda obs, settings, **_: seen.append((len(obs.genes), settings.n_genes)))
    assert pp.validate(section, IMAGE, genes=2, align=False).ok
    assert seen == [(section["table"].n_vars, 2)]


def test_spots_to_the_image_is_found_as_the_image_to_the_spots(section):
    assert pp.validate(section, IMAGE, genes=2, align="spots").alignment is not None


@pytest.mark.parametrize("turn", [name for name in TURNS if name != "as it is"])
def test_an_image_that_was_turned_or_flipped_is_noticed_and_the_way_back_named(section, turn):
    back = {"turned by 90° clockwise": "turned by 90° counterclockwise"}
    back |= {there: here for here, there in back.items()}
    sdata = with_image(section, TURNS[turn](pixels_of(section)).copy())
    report = pp.validate(sdata, IMAGE, bin_um=20.0)
    message = messages(report, "error")
    assert not report.ok and f"better if it is {back.get(turn, turn)} (R²" in message
    exec(message.split("`")[1], {"sdata": sdata})  # the printed remedy, as a user would type it
    right, mended = (read_observation(one, IMAGE, bin_um=20.0, genes=2) for one in (section, sdata))
    under = pool(he_features(mended), mended.measurement)[:, :3]
    assert np.corrcoef(under.ravel(), pool(he_features(right), right.measurement)[:, :3].ravel())[0, 1] > 0.95


@pytest.mark.parametrize("turn", list(AFFINES))
def test_affines_are_the_turns_on_pixels(turn):
    h, w = 3, 5
    image = np.arange(h * w).reshape(1, h, w)
    matrix = np.array(ast.literal_eval(AFFINES[turn].format(h=h, w=w)))
    there = TURNS[turn](image)[0]
    for y, x in np.ndindex(h, w):
        to_x, to_y, _ = matrix @ [x + 0.5, y + 0.5, 1]
        assert there[int(to_y), int(to_x)] == image[0, y, x]


@pytest.mark.torch
def test_superresolve_stops_at_a_flipped_image_unless_asked_to_take_it(section):
    from hadmst_sc import tl

    flipped = with_image(section, pixels_of(section)[:, ::-1].copy())
    how = {"model": None, "bin_um": 20.0, "show_progress_bar": False}
    with pytest.raises(ValueError, match="better if it is flipped top to bottom"):
        tl.superresolve(flipped, IMAGE, **how)
    assert "superres" not in flipped
    tl.superresolve(flipped, IMAGE, **how, align=False)
    assert "superres" in flipped


@pytest.mark.parametrize("seed", [8, 9])
def test_an_image_of_another_section_is_doubted(section, seed):
    other = pixels_of(datasets.phantom(seed=seed, size_um=1200.0))
    report = pp.validate(with_image(section, other), IMAGE)
    message = messages(report, "warning") + messages(report, "error")
    assert "no better than a rotated or flipped copy" in message or "better if it is" in message


def test_what_was_shifted_is_said(section):
    report = pp.validate(phantom(misregistration_um=(30.0, -20.0)), IMAGE)
    assert report.alignment.applied and "`superresolve` corrects it" in messages(report, "note")
    assert report.facts["shift_um"].startswith(("2", "3"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_key": "he"}, "`image_key='he'` is not in `sdata.images`"),
        ({"table_key": "counts"}, "`table_key='counts'` is not in `sdata.tables`"),
        ({"bin_um": -1.0}, "`bin_um` needs a positive length"),
        ({"genes": ["nothing"]}, "nothing"),
        ({"tissue_key": "nowhere"}, "`tissue_key='nowhere'` is not in"),
        ({"sdata": None}, "`sdata` needs a SpatialData, but is None"),
        ({"image_key": {"a": "dictionary"}}, "`image_key` needs a name, as text"),
        ({"image_key": ["a", "list"]}, "a: `image_key='a'` is not in `sdata.images`"),
    ],
)
def test_bad_input_is_reported_and_not_raised(section, arguments, message):
    report = pp.validate(**({"sdata": section, "image_key": IMAGE, "align": False} | arguments))
    assert not report.ok and message in messages(report, "error")


def test_all_problems_are_findings_of_their_own(section):
    report = pp.validate(section, IMAGE, bin_um=-1.0, genes=["nothing"])
    assert len(report.findings) == 2 and all(finding.severity == "error" for finding in report.findings)


def test_rare_genes_and_an_image_without_contrast_are_warnings(section):
    rare = with_image(section, np.full_like(pixels_of(section), 200))
    table = rare["table"]
    table.X = (table.X.toarray() > np.quantile(table.X.toarray(), 0.98, axis=0)).astype(np.float32)
    message = messages(pp.validate(rare, IMAGE, align=False), "warning")
    assert "the image has no contrast" in message and "genes have fewer than 0.1 counts per spot" in message


def test_warnings_go_into_the_report_and_nowhere_else(section, caplog):
    with caplog.at_level(logging.WARNING, logger="hadmst_sc"):
        report = pp.validate(with_image(section, np.full_like(pixels_of(section), 200)), IMAGE, align=False)
    assert not caplog.records and messages(report, "warning")


def test_too_few_spots_cannot_tell_how_the_image_lies():
    report = pp.validate(datasets.phantom(size_um=500.0), IMAGE)
    assert report.ok and "registration needs at least 40 spots" in messages(report, "note")


def test_text_and_html_show_verdict_facts_and_findings(section):
    report = pp.Report({"spots": 3}, (pp.Finding("error", "a < b"), pp.Finding("note", "c")))
    assert str(report) == "not ready: 1 error, 1 note\n  spots  3\nerror: a < b\nnote: c"
    html = report._repr_html_()
    assert "a &lt; b" in html and "<th style='text-align:left'>spots</th><td>3</td>" in html
    assert str(pp.Report({}, ())) == "ready: no problems"
