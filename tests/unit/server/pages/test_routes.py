"""The pages as the server renders them, without a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.experiments import FakeRun, many
from support.serving import Site, serving

from raytrain.server.pages.routes import STATIC

PAGES = ("/", "/new", "/compare", "/lineage", "/models", "/nodes")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = tmp_path_factory.mktemp("pages")
    many(place / "results", 60, iterations=4)
    # A config's name is letters and digits; a directory may have any.
    FakeRun(place / "results", "hostile").start().train(3).place.rename(place / "results" / HOSTILE)
    with serving(place) as site:
        site.scan()
        yield site


def page(site: Site, path: str) -> str:
    answer = site.get(path)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    return answer.body.decode()


def test_the_first_rows_come_with_the_page(site: Site) -> None:
    text = page(site, "/")
    assert text.count('<tr id="run-') == 50
    assert "1 to 50 of 61" in text
    assert page(site, "/?page=2").count('<tr id="run-') == 11


def test_rows_are_found_filtered_and_sorted(site: Site) -> None:
    names = re.findall(r'class="name cut"[^>]*>([^<]+)', page(site, "/?q=run-000&sort=name"))
    assert names == [f"run-000{number}" for number in range(10)]
    failed = page(site, "/?state=failed&sort=-best_score")
    states = set(re.findall(r'<td class="at-state"><span class="state state-(\w+)', failed))
    assert states == {"failed"}
    assert 'aria-sort="descending"' in failed


@pytest.mark.parametrize("query", ["sort=nothing", "state=nothing"])
def test_what_cannot_be_asked_is_said(site: Site, query: str) -> None:
    answer = site.get(f"/?{query}")
    assert answer.status == 400
    assert b"nothing" in answer.body


@pytest.mark.parametrize("path", PAGES)
def test_pages_obey_the_policy(site: Site, path: str) -> None:
    """No inline script or style, and nothing from elsewhere."""
    text = page(site, path)
    assert re.findall(r"<script(?![^>]*\ssrc=\"/static/)", text) == []
    assert re.findall(r"<style|\sstyle=|\son\w+=\"", text) == []
    assert re.findall(r"(?:src|href)=\"(?!/|#)", text) == []


def test_names_are_text(site: Site) -> None:
    for path in ("/?q=onerror", f"/runs/{site.run_of(HOSTILE)}"):
        text = page(site, path)
        assert HOSTILE not in text
        assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_what_changes_the_direction_of_writing_is_escaped(tmp_path: Path) -> None:
    hostile = FakeRun(tmp_path / "results", "hostile").start().train(2)
    hostile.place.rename(tmp_path / "results" / "gpj.\u202eexe")
    with serving(tmp_path) as site:
        site.scan()
        assert r"gpj.\u202eexe" in page(site, "/")


def test_a_run_that_is_not_there(site: Site) -> None:
    answer = site.get("/runs/0123456789abcdef")
    assert (answer.status, b"There is no run" in answer.body) == (404, True)


def test_static_files_are_kept_by_the_browser_and_complete(site: Site) -> None:
    base = re.search(r'href="(/static/\w+)/style.css"', page(site, "/"))
    assert base is not None
    for file in [*STATIC.iterdir(), Path("plotly.min.js")]:
        answer = site.get(f"{base[1]}/{file.name}")
        assert answer.status == 200, file
        assert "immutable" in answer.headers["cache-control"]
    assert site.get("/static/of-another-version/style.css").headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("name", ["..%2froutes.py", "%2e%2e/routes.py", "routes.py", ""])
def test_no_other_file_is_served(site: Site, name: str) -> None:
    assert site.get(f"/static/x/{name}").status == 404


def test_modules_import_one_another_and_nothing_else() -> None:
    names = {file.name for file in STATIC.iterdir()}
    for file in STATIC.glob("*.js"):
        for imported in re.findall(r'(?:from|import) "([^"]+)"', file.read_text()):
            assert imported.removeprefix("./") in names, f"{file.name} imports {imported}"


def test_modules_never_parse_text_as_html() -> None:
    """But for the pages of this server itself, in `renew`."""
    for file in STATIC.glob("*.js"):
        text = file.read_text()
        unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function"
        assert re.findall(unsafe, text) == [], file.name
        assert text.count("parseFromString") == (file.name == "page.js"), file.name


def test_read_only_offers_nothing_that_changes(tmp_path: Path) -> None:
    FakeRun(tmp_path / "results", "one").start().train(2)
    with serving(tmp_path, read_only=True) as site:
        text = page(site, f"/runs/{site.run_of('one')}")
        assert "data-do=" not in text
        assert 'href="/new"' not in page(site, "/")


def test_without_runs_the_page_says_where_they_come_from(tmp_path: Path) -> None:
    with serving(tmp_path) as site:
        text = page(site, "/")
        assert "No runs yet" in text
        assert str(site.results) in text
