"""The frame: options that are declared are arguments, and what is measured lies in three files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_declared_option_is_an_argument_of_its_kind():
    from frame import parser

    options = parser("registration", None).parse_args(["--no-real", "--phantoms", "3"])
    assert (options.no_real, options.phantoms, options.workers) == (True, 3, 1)
    options = parser("hidden_tissue", None).parse_args(["--sections", "one", "two"])
    assert options.sections == ["one", "two"] and options.phantoms == 24
    options = parser("mouse_brain", None).parse_args(["--bin-um", "10"])
    assert options.bin_um == 10.0 and options.genes == 200


def test_every_measurement_has_its_script_and_its_results():
    import plan

    for name, one in plan.load()["measurements"].items():
        if script := one.get("command") or one.get("script"):
            assert (ROOT / script).is_file()
            assert (ROOT / "benchmarks" / "results" / f"{name}.json").is_file()


def test_record_page_and_picture_are_written(tmp_path, capsys):
    from frame import Measurement
    from records import page

    toy = Measurement(
        "mouse_brain",
        "A toy.",
        lambda options: {"results": [{"genes": options.genes}]},
        lambda record: page(record, "# Toy", str(record["results"][0]["genes"])),
        lambda record, path: path.write_text("picture"),
        weights=None,
    )
    toy.main(["--genes", "7", "--output", str(tmp_path)])
    assert json.loads((tmp_path / "mouse_brain.json").read_text())["results"] == [{"genes": 7}]
    assert (tmp_path / "mouse_brain.md").read_text().startswith("# Toy\n\n7\n\nMade by `")
    assert (tmp_path / "mouse_brain.png").read_text() == "picture"
    assert "# Toy" in capsys.readouterr().out


def test_rows_are_grouped_in_the_order_of_the_first_of_each():
    from frame import grouped

    rows = [{"a": 2, "b": 1}, {"a": 1, "b": 1}, {"a": 2, "b": 3}]
    assert grouped(rows, "a") == {(2,): [rows[0], rows[2]], (1,): [rows[1]]}


def test_a_model_of_another_class_computes_the_same():
    import torch
    from frame import with_weights

    from hadmst_sc.models import HadmstModel
    from hadmst_sc.models.weights import load_model

    plain = load_model("default")
    made = with_weights(type("Other", (HadmstModel,), {}), plain)
    assert type(made).__name__ == "Other" and (made.name, made.sha256) == (plain.name, plain.sha256)
    context = torch.randn(1, plain.spec.context, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(plain.encode(context), made.encode(context), strict=True))


@pytest.mark.parametrize(
    "name", ["beads", "hidden_tissue", "laws", "mouse_brain", "registration", "given_cells", "nuclei", "waiting"]
)
def test_pages_follow_from_their_records_alone(name):
    module = __import__(name)
    results = ROOT / "benchmarks" / "results"
    record = json.loads((results / f"{name}.json").read_text())
    assert module.render(record) + "\n" == (results / f"{name}.md").read_text()
