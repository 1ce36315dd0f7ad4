"""The HTML of `tollspan report`, opened from its file: complete, quiet, and readable for everybody."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="pip install playwright")

from playwright.sync_api import expect

from tests.browser.conftest import Visit, Watch
from tests.browser.looks import instant, usd
from tests.browser.test_page_people import PHONE, sideways
from tests.browser.world import HOSTILE, HOSTILE_DAY, SHOWN, TOTAL, World
from tests.end_to_end.service import tollspan
from tollspan.processor.report import build_report, html_page


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def report(world: World, folder: Path) -> str:
    """Address of the report of the small world."""
    path = folder / "small.html"
    window = ["--since", instant(SHOWN[0]), "--until", instant(SHOWN[1])]
    done = tollspan("report", "--store", world.service.url, "-o", str(path), *window)
    assert done.returncode == 0, done.stderr
    return path.as_uri()


def test_it_says_what_the_ledger_says(visit: Visit, report: str, watch: Watch) -> None:
    page = visit(report)
    expect(page.locator("body")).to_contain_text(usd(TOTAL).removeprefix("$"))
    for name in ("acme", "globex", "mystery", "Ranker"):
        expect(page.locator("body")).to_contain_text(name)
    assert watch.requests == [report]
    assert not page.locator("script, link[href], img, iframe").count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_in_it_hinders_people(visit: Visit, report: str, violations: Any, scheme: str) -> None:
    assert not violations(visit(report, color_scheme=scheme))


def test_it_is_readable_on_a_phone_and_on_paper(visit: Visit, report: str) -> None:
    page = visit(report, **PHONE)
    assert not sideways(page)
    assert page.pdf(format="A4")[:5] == b"%PDF-"


def test_hostile_names_are_text(visit: Visit, world: World, folder: Path, watch: Watch) -> None:
    path = folder / "hostile.html"
    gathered = build_report(world.reader, HOSTILE_DAY, HOSTILE_DAY + timedelta(hours=1))
    path.write_text(html_page(gathered), encoding="utf-8")
    page = visit(path.as_uri())
    expect(page.locator("body")).to_contain_text(HOSTILE["markup"])
    expect(page.locator("body")).to_contain_text(HOSTILE["quotes"])
    assert not page.locator("img, script").count()
    assert not sideways(page)
    page.set_viewport_size({"width": 360, "height": 740})
    assert not sideways(page)
