"""The page for everybody: keyboard alone, little sight, a phone, dark rooms, and names that nobody would choose."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("playwright.sync_api", reason="pip install playwright")

from playwright.sync_api import Page, expect

from tests.browser.conftest import Visit, Watch
from tests.browser.looks import VIEWS, address, figure, panel, quoted, ready, row, section, shows, state
from tests.browser.world import HOSTILE, HOSTILE_COST, HOSTILE_DAY, TOTAL, World

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
HOSTILE_WINDOW = {"since": HOSTILE_DAY.replace(minute=0), "until": HOSTILE_DAY.replace(minute=30)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_nothing_hinders_people(visit: Visit, world: World, violations: Any, view: str, scheme: str) -> None:
    page = ready(visit(address(world, view), color_scheme=scheme, reduced_motion="reduce"))
    assert not violations(page)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_in_the_panel_hinders_people(visit: Visit, world: World, violations: Any, scheme: str) -> None:
    page = ready(visit(address(world), color_scheme=scheme, reduced_motion="reduce"))
    figure(page, "spend").click()
    expect(panel(page, "figure").locator("[data-call]").first).to_be_visible()
    assert not violations(page)
    panel(page, "figure").locator("[data-call] .row-link").first.click()
    expect(panel(page, "charge").locator("[data-charge]").first).to_be_visible()
    assert not violations(page)
    panel(page, "charge").get_by_role("link", name="Whole trace").click()
    expect(panel(page, "trace").locator("[data-span]").first).to_be_visible()
    assert not violations(page)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Help")).to_be_visible()
    assert not violations(page)


def test_light_or_dark_is_a_choice_that_stays(visit: Visit, world: World) -> None:
    page = ready(visit(address(world), color_scheme="light"))

    def ground() -> Any:
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light = ground()
    page.get_by_role("button", name="Dark theme").click()
    expect(page.get_by_role("button", name="Light theme")).to_be_visible()
    dark = ground()
    assert light != dark
    page.reload()
    ready(page)
    assert ground() == dark
    page.keyboard.press("t")
    expect(page.get_by_role("button", name="Dark theme")).to_be_visible()
    assert ground() == light


def focused(page: Page) -> str:
    """What has the focus, in words; fails where that cannot be seen."""
    found = page.evaluate(
        """() => {
          const at = document.activeElement;
          if (!at || at === document.body) return { name: "" };
          const ringed = (each) => {
            const style = getComputedStyle(each);
            return (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0) || style.boxShadow !== "none";
          };
          const box = at.getBoundingClientRect();
          const ring = ringed(at) || (at.matches("input") && ringed(at.parentElement));
          return {
            name: (at.getAttribute("aria-label") || at.innerText || at.id || at.tagName).trim().slice(0, 60),
            ring, inside: box.right > 0 && box.left < innerWidth && box.width > 0,
          };
        }"""
    )
    assert not found["name"] or (found["ring"] and found["inside"]), found
    return str(found["name"])


def test_all_by_keyboard(visit: Visit, world: World) -> None:
    page = ready(visit(address(world)))
    page.keyboard.press("Tab")
    assert focused(page) == "Skip to the figures"
    order = []
    for _ in range(40):
        page.keyboard.press("Tab")
        order.append(focused(page))
    names = "\n".join(order)
    for earlier, later in [("Executive", "On-call"), ("On-call", "Debug"), ("Debug", "Help"), ("Help", "24h")]:
        assert names.index(earlier) < names.index(later), names
    # From the start to the headline figure, into the panel, to a call, and out.
    page.keyboard.press("Escape")
    page.reload()
    ready(page)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("main")).to_be_focused()
    page.keyboard.press("Tab")
    expect(figure(page, "spend")).to_be_focused()
    page.keyboard.press("Enter")
    behind = panel(page, "figure")
    shows(figure(behind, "calls.cost"), TOTAL)
    links = behind.locator("[data-call] .row-link")
    expect(links.first).to_be_visible()
    for _ in range(30):
        page.keyboard.press("Tab")
        if links.first.evaluate("each => each === document.activeElement"):
            break
    expect(links.first).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(links.nth(1)).to_be_focused()
    page.keyboard.press("End")
    expect(links.last).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    panel(page, "charge")
    page.keyboard.press("Escape")
    expect(page.locator("[data-panel]")).to_have_count(0)
    expect(figure(page, "spend")).to_be_focused()


def test_shortcuts(visit: Visit, world: World) -> None:
    page = ready(visit(address(world)))
    for key, view in (("2", "oncall"), ("3", "debug"), ("1", "executive")):
        page.keyboard.press(key)
        expect(page.locator(f'main[data-view="{view}"][aria-busy=false]')).to_be_visible()
    page.keyboard.press("/")
    field = page.get_by_role("combobox", name="Filter")
    expect(field).to_be_focused()
    page.keyboard.type("ten")
    page.keyboard.press("Enter")
    expect(field).to_have_value("tenant=")
    expect(page.get_by_role("option", name="acme")).to_be_visible()
    page.keyboard.type("acme")
    expect(page.get_by_role("listbox").get_by_role("option")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    shows(figure(page, "spend"), world.query("cost", by=[], where=["tenant=acme"])[0]["cost"])
    # Keys are letters while somebody types.
    page.keyboard.type("3?")
    expect(page.locator('main[data-view="executive"]')).to_be_visible()
    expect(page.get_by_role("dialog", name="Help")).to_have_count(0)
    page.keyboard.press("Escape")
    page.keyboard.press("Backspace")
    shows(figure(page, "spend"), TOTAL)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Help")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog", name="Help")).to_have_count(0)


def sideways(page: Page) -> list[str]:
    """What makes the page wider than the screen."""
    assert page.viewport_size is not None
    # Not innerWidth: on a phone that grows with what is too wide.
    width = page.viewport_size["width"]
    if page.evaluate("document.documentElement.scrollWidth") <= width:
        return []
    found: list[str] = page.evaluate(
        """width => [...document.querySelectorAll("body *")]
          .map((each) => [each, Math.round(each.getBoundingClientRect().right)])
          .filter(([, right]) => right > width + 1)
          .map(([each, right]) => `${each.tagName}.${each.className} ${right}`).slice(0, 12)""",
        width,
    )
    return found or ["the document"]


@pytest.mark.parametrize("view", VIEWS)
def test_a_phone_needs_no_sideways_scrolling(visit: Visit, world: World, violations: Any, view: str) -> None:
    page = ready(visit(address(world, view, where="environment=prod"), **PHONE))
    assert not sideways(page)
    if view == "executive":
        shows(figure(page, "spend"), world.query("cost", by=[], where=["environment=prod"])[0]["cost"])
        assert not violations(page)
        figure(page, "spend").tap()
        behind = panel(page, "figure")
        expect(behind.locator("[data-call]").first).to_be_visible()
        assert not sideways(page)
        box = behind.bounding_box()
        assert box is not None
        assert box["width"] <= 360
        behind.locator("[data-call] .row-link").first.tap()
        expect(panel(page, "charge").locator("[data-charge]").first).to_be_visible()
        assert not sideways(page)
        panel(page, "charge").get_by_role("button", name="Close").tap()
        expect(page.locator("[data-panel]")).to_have_count(0)


def test_a_narrow_window_with_large_text(visit: Visit, world: World) -> None:
    # 1280 px at 400 %, WCAG 1.4.10.
    page = ready(visit(address(world), viewport={"width": 320, "height": 256}))
    assert not sideways(page)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_text(visit: Visit, world: World, name: str) -> None:
    tenant = world.rows(
        "SELECT tenant FROM ledger FINAL WHERE startsWith(tenant, {part:String})", {"part": HOSTILE[name][:20]}
    )[0]["tenant"]
    page = ready(visit(address(world, **HOSTILE_WINDOW, where=f"tenant={tenant}")))
    shows(figure(page, "spend"), HOSTILE_COST)
    found = row(section(page, "by.tenant"), tenant)
    expect(found).to_have_count(1)
    found.locator(".row-link").click()
    behind = panel(page, "figure")
    shows(figure(behind, "calls.cost"), HOSTILE_COST)
    behind.locator("[data-call] .row-link").click()
    expect(panel(page, "charge").locator(f"dd[title={quoted(tenant)}]").first).to_be_attached()
    assert not page.locator("img, main script, aside script").count()
    assert not sideways(page)


def test_hostile_names_beside_each_other(visit: Visit, world: World) -> None:
    page = ready(visit(address(world, **HOSTILE_WINDOW, by="tenant")))
    shows(figure(page, "spend"), HOSTILE_COST * len(HOSTILE))
    expect(section(page, "trend").locator("svg")).to_be_visible()
    section(page, "trend").get_by_role("button", name="Table").click()
    assert not sideways(page)
    field = page.get_by_role("combobox", name="Filter")
    field.fill("tenant=")
    page.get_by_role("option", name="<img src=x").click()
    shows(figure(page, "spend"), HOSTILE_COST)
    assert state(page)["where"] == ["tenant=<img src=x onerror=alert(1)>"]
    page.set_viewport_size({"width": 360, "height": 740})
    assert not sideways(page)


def test_reduced_motion_is_kept(visit: Visit, world: World) -> None:
    page = ready(visit(address(world), reduced_motion="reduce"))
    figure(page, "spend").click()
    expect(panel(page, "figure")).to_be_visible()
    moving = page.evaluate(
        "document.getAnimations().filter((each) => each.effect.getComputedTiming().duration > 20).length"
    )
    assert moving == 0


def test_nothing_is_kept_but_the_theme(visit: Visit, world: World) -> None:
    page = ready(visit(address(world)))
    page.get_by_role("button", name="Dark theme").click()
    assert page.context.cookies() == []
    assert page.evaluate("Object.keys(localStorage).length") <= 1
    assert page.evaluate("Object.keys(sessionStorage).length") == 0


def test_it_prints(visit: Visit, world: World) -> None:
    page = ready(visit(address(world)))
    page.emulate_media(media="print")
    expect(figure(page, "spend")).to_be_visible()
    expect(page.get_by_role("combobox", name="Filter")).to_be_hidden()
    assert page.pdf(format="A4")[:5] == b"%PDF-"


def test_no_request_leaves_the_server(visit: Visit, world: World, watch: Watch) -> None:
    page = ready(visit(address(world)))
    for key in "231":
        page.keyboard.press(key)
        ready(page)
    assert watch.requests
    assert all(each.startswith((f"{world.page}/", "data:")) for each in watch.requests)
    answer = page.request.get(world.page)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
