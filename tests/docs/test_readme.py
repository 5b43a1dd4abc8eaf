"""The README is short, says what the result files say, and works where it is shown: on GitHub and on PyPI."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "README.md").read_text()


def words(text: str) -> int:
    """Words that a reader sees: no comments, pictures, addresses or code in blocks."""
    text = re.sub(r"<!--.*?-->|```.*?```|!\[[^\]]*\]\([^)]*\)|(?<=\])\([^)]*\)", "", text, flags=re.S)
    return sum(bool(re.search(r"[^\W\d_]", word)) for word in text.split())


@pytest.mark.parametrize(
    ("first", "most"),
    [(r"!\[", 40), (r"\| +0\.\d{3}", 80), (r"```bash\n", 120), (r"\n## More\n", 500)],
    ids=["picture", "number", "command", "more"],
)
def test_few_words_come_before_the_first(first, most):
    found = re.search(first, PAGE)
    assert found and 10 < words(PAGE[: found.start()]) <= most


def test_words_are_counted_as_they_are_read():
    assert words("<!-- a b -->\none [two three](https://four.five) | 0.1 | `six`\n```\nseven\n```\n![e](n)") == 4


def test_every_link_leads_to_a_file_of_the_project_or_to_another_site():
    """Links to files are relative; what PyPI shows has those of the version (see tests/packaging)."""
    links = re.findall(r"\]\(([^)]*)\)", PAGE)
    ours = [link for link in links if not link.startswith("https://")]
    assert len(ours) > 10 and [path for path in ours if not (ROOT / path).exists()] == []


def test_the_first_picture_is_small_to_load_and_large_to_look_at():
    (path,) = re.findall(r"!\[[^\]]+\]\(([^)]*)\)", PAGE)
    assert (ROOT / path).stat().st_size <= 400_000
    with Image.open(ROOT / path) as picture:
        assert picture.width >= 1200


def test_the_install_command_brings_what_the_lines_import():
    (line,) = re.findall(r"pip install '(hadmst-sc.*)'", PAGE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    brought = {"hadmst-sc"}
    for extra in re.findall(r"[\w-]+", line.partition("[")[2]):
        brought |= {re.match(r"[\w-]+", one)[0] for one in project["optional-dependencies"][extra]}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    imported = {name.replace("_", "-") for name in re.findall(r"^import (\w+)", block, re.M)}
    assert {"hadmst-sc", "squidpy"} <= imported <= brought and "spatialdata-io" in brought
    assert len([one for one in block.splitlines() if one]) <= 10


def test_make_demo_and_make_test_are_shown():
    assert re.search(r"^make demo\b", PAGE, re.M) and re.search(r"^make test\b", PAGE, re.M)


@pytest.mark.torch
def test_the_tables_are_those_of_the_result_files(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    import plan
    import records
    import report
    from outcomes import Results

    declared = plan.load()
    found = Results.read(records.RESULTS / "full", list(declared["tasks"]))
    assert report.Summary(found, declared, {}).readme(PAGE) == PAGE, "run `hadmst-sc benchmark report`"
    assert len(re.findall(r"^\| .* \[[+-]0\.\d{3}, [+-]0\.\d{3}\] *\|[^|]*\|$", PAGE, re.M)) == 3
    assert not re.search(r"0\.\d{3}", re.sub(r"<!-- numbers -->.*?<!-- end of numbers -->", "", PAGE, flags=re.S))
