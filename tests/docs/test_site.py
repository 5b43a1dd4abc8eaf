"""The built site in a browser: everything loads, every link and anchor leads somewhere, search finds.

Without network: what lies outside the site (mathematics, linked pages) is answered empty. Skips without a browser.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest

ROOT = Path(__file__).parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SOURCES = ("docs", "src", "tutorials", "benchmarks/results", "CHANGELOG.md", "CONTRIBUTING.md", "README.md")
WIDTHS = (1280, 390)  # a laptop, a telephone


@dataclass
class Site:
    """Where the site is served, and the browser's page that looks at it."""

    base: str
    folder: Path
    page: Any
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        here = self.page
        here.route(lambda url: not url.startswith(self.base), lambda route: route.fulfill(body=""))
        here.on("console", lambda said: said.type == "error" and self.errors.append(f"{here.url}: {said.text}"))
        here.on("pageerror", lambda error: self.errors.append(f"{here.url}: {error}"))
        here.on("requestfailed", lambda request: self.errors.append(f"{here.url}: {request.url} failed"))
        here.on("response", lambda got: got.status >= 400 and self.errors.append(f"{here.url}: {got.status} {got.url}"))

    def open(self, path: str) -> Any:
        self.page.goto(f"{self.base}/{path}")
        return self.page


@dataclass
class Seen:
    """A page: the ids in it, where its links lead, and by how many pixels it is wider than a window."""

    anchors: set[str]
    links: set[str]
    excess: dict[int, int]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


def _newest(*places: Path) -> float:
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*.*"))]
    made = {"_build", "_generated", "__pycache__"}  # and the copies of the tutorials
    own = [file for file in files if not made & set(file.parts) and file.parent != ROOT / "docs" / "tutorials"]
    return max(file.stat().st_mtime for file in own)


def _built(scratch: Path) -> Path:
    """`docs/_build/html` where it is newer than its sources, else a build of this test's own."""
    found = ROOT / "docs" / "_build" / "html"
    index = found / "searchindex.js"  # written last
    if index.is_file() and index.stat().st_mtime > _newest(*(ROOT / source for source in SOURCES)):
        return found
    subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", "docs", str(scratch)],
        cwd=ROOT,
        env=os.environ | {"DOCS_OFFLINE": "1"},
        check=True,
    )
    return scratch


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Site]:
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test")
    pytest.importorskip("myst_nb", reason="the site cannot be built: make test")
    binary = os.environ.get("HADMST_CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if binary is None:
        pytest.skip(f"no browser: none of {BROWSERS} is on PATH; HADMST_CHROMIUM names another place")
    folder = _built(tmp_path_factory.mktemp("html"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    Thread(target=server.serve_forever, daemon=True).start()
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary)
        yield Site(f"http://127.0.0.1:{server.server_port}", folder, browser.new_page())
        browser.close()
    server.shutdown()


@pytest.fixture(scope="module")
def seen(site) -> dict[str, Seen]:
    """Every page of the site, visited."""
    found = {}
    pages = (path.relative_to(site.folder) for path in site.folder.rglob("*.html"))
    for path in sorted(page.as_posix() for page in pages if page.parts[0] != "_static"):  # a template of the theme
        page, excess = site.open(path), {}
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 800})
            excess[width] = page.evaluate("document.documentElement.scrollWidth") - width
        anchors = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
        links = page.eval_on_selector_all("a[href]", "all => all.map(one => one.href)")
        found[path] = Seen(set(anchors), set(links), excess)
    assert len(found) > 20
    return found


def test_every_page_loads_without_an_error(site, seen):
    assert site.errors == []


def test_every_link_and_anchor_leads_somewhere(site, seen):
    broken = []
    for path, here in seen.items():
        for href in here.links:
            url, anchor = urldefrag(href)
            if not url.startswith(site.base):
                continue
            target = unquote(url.removeprefix(site.base)).strip("/").partition("?")[0] or "index.html"
            if target in seen:
                if anchor and unquote(anchor) not in seen[target].anchors:
                    broken.append(f"{path}: {target}#{anchor}")
            elif not (site.folder / target).is_file():
                broken.append(f"{path}: {target}")
    assert sum(len(here.links) for here in seen.values()) > 500
    assert broken == []


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_its_window(seen, width):
    assert {path: here.excess[width] for path, here in seen.items() if here.excess[width] > 0} == {}


def test_no_page_is_larger_than_300_kb(site, seen):
    sizes = {path: (site.folder / path).stat().st_size for path in seen}
    assert {path: size for path, size in sizes.items() if size > 300_000} == {}


def test_a_click_leads_from_the_index_to_another_page(site):
    page = site.open("index.html")
    page.set_viewport_size({"width": WIDTHS[0], "height": 800})
    page.click(".bd-sidebar-primary a:text-is('Getting started')")
    page.wait_for_url("**/getting_started.html")
    assert page.inner_text("h1").startswith("Getting started")


def test_the_search_finds_superresolve_in_the_reference(site):
    page = site.open("index.html")
    page.set_viewport_size({"width": WIDTHS[0], "height": 800})
    page.goto(f"{site.base}/search.html?q=superresolve")
    page.wait_for_selector("#search-results li a")
    found = page.eval_on_selector_all("#search-results li a", "all => all.map(one => one.href)")
    assert any("/reference/api/tl.html" in href for href in found)
    assert site.errors == []
