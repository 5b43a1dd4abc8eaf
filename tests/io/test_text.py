"""Names as people see them: on one line, printable, of a length that fits, and nothing is a command."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pytest

import hadmst_sc as hd
from hadmst_sc.section.arguments import LONGEST_NAME, printable

NAMES = [
    "$\\frac{$",
    "<script>alert(1)</script>",
    "a\x1b[31mred\nline\r\x07",
    "x" * 300,
    "\u202eleft",
    "µ é 基因 %s {0}",
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("EPCAM", "EPCAM"),
        ("µ é 基因", "µ é 基因"),
        ("$x$ <b>", "$x$ <b>"),
        ("a\x1b[31m\nb", r"a\x1b[31m\nb"),
        ("\u202eb", r"\u202eb"),
        (3, "3"),
    ],
)
def test_control_characters_are_shown_as_their_escapes_and_nothing_else_changes(name, expected):
    assert printable(name) == expected


def test_long_names_keep_both_ends():
    name = printable("a" * 200 + "b" * 200)
    assert len(name) == LONGEST_NAME and name.startswith("aaa") and name.endswith("bbb") and "…" in name


@pytest.fixture(scope="module")
def section():
    sdata = hd.datasets.phantom(3, n_genes=len(NAMES), size_um=600.0, depth=(5.0, 40.0))
    sdata["table"].var_names = NAMES
    hd.tl.superresolve(
        sdata, "phantom_full_image", bin_um=20.0, model=None, align=False, genes=NAMES, show_progress_bar=False
    )
    std = sdata["superres"] * 0.5
    std.attrs.update(sdata["superres"].attrs)
    sdata.images["superres_std"] = std
    return sdata


def test_every_picture_is_drawn_whatever_genes_are_called(section):
    for axes in (
        hd.pl.superresolve(section, NAMES),
        hd.pl.compare(section, {"$\\frac{$": "superres"}, NAMES),
        hd.pl.uncertainty(section, NAMES),
        hd.pl.reliability(section),
    ):
        axes.ravel()[0].figure.canvas.draw()
    words = [text.get_text() for text in axes[1].get_yticklabels()]
    assert set(words) == {printable(name) for name in NAMES}
    plt.close("all")


def test_reports_hold_no_command_for_terminal_or_browser(section):
    reports = [hd.tl.summary(section), hd.pp.validate(section, "phantom_full_image", genes=NAMES, align=False)]
    for text in map(str, reports):
        assert "\x1b" not in text and "\u202e" not in text and "\r" not in text
    for html in (report._repr_html_() for report in reports):
        assert "<script>" not in html and "\x1b" not in html


@pytest.mark.parametrize("call", [hd.pl.superresolve, hd.pl.uncertainty])
def test_errors_name_genes_on_one_line(section, call):
    with pytest.raises(KeyError) as caught:
        call(section, ["b\x1b[31m\n"])
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)
