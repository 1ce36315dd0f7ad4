"""The page when something is missing: an empty ledger, a service that stops and comes back, questions that fail."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

pytest.importorskip("playwright.sync_api", reason="pip install playwright")

from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Route, expect

from tests.browser.conftest import Visit, Watch
from tests.browser.looks import address, figure, panel, ready, shows
from tests.browser.world import TOTAL, World, filled, served
from tests.end_to_end.service import Service


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Service]:
    """A service of this file's own, empty at first, whose page stays where it is when it is started again."""
    with served(tmp_path_factory.mktemp("trouble"), page=f"127.0.0.1:{port}") as started:
        yield started


def test_from_an_empty_ledger_to_a_service_that_went_away_and_came_back(
    visit: Visit, watch: Watch, service: Service, port: int
) -> None:
    where = f"http://127.0.0.1:{port}"
    page = visit(f"{where}/?since=24h")
    expect(page.get_by_role("main")).to_contain_text("tollspan demo")
    expect(page.get_by_role("main")).not_to_contain_text("$0")
    for key in "23":
        page.keyboard.press(key)
        expect(page.get_by_role("main")).to_contain_text("tollspan doctor")

    # The first spans come.
    filled(service)
    page.keyboard.press("1")
    page.get_by_role("button", name="Load again").click()
    shows(figure(ready(page), "spend"), TOTAL)

    # The service stops: what is there stays there.
    watch.forgiven.append("ERR_CONNECTION_REFUSED|ERR_EMPTY_RESPONSE|ERR_CONNECTION_RESET|Failed to fetch")
    service.stop()
    page.get_by_role("button", name="Load again").click()
    alert = page.get_by_role("alert").first
    expect(alert).to_contain_text("does not answer")
    shows(figure(page, "spend"), TOTAL)
    figure(page, "spend").click()
    expect(panel(page, "figure").get_by_role("alert").first).to_be_visible()
    page.keyboard.press("Escape")

    # And starts again.
    service.start()
    alert.get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_have_count(0)
    shows(figure(page, "spend"), TOTAL)
    figure(page, "spend").click()
    shows(figure(panel(page, "figure"), "calls.cost"), TOTAL)


def failing(route: Route) -> None:
    said = {"error": "The store is away.", "hint": "It is asked again by itself."}
    route.fulfill(status=503, json=said, headers={"Retry-After": "1"})


def test_a_question_that_fails_blanks_nothing(visit: Visit, world: World, watch: Watch) -> None:
    watch.forgiven.append("status of 503")
    page = ready(visit(address(world)))
    page.route("**/api/executive*", failing)
    page.get_by_role("link", name="7d").click()
    expect(page.get_by_role("alert")).to_contain_text("The store is away. It is asked again by itself.")
    shows(figure(page, "spend"), TOTAL)
    page.unroute("**/api/executive*")
    page.get_by_role("alert").get_by_role("button", name="Try again").click()
    expect(page.get_by_role("alert")).to_have_count(0)
    shows(figure(page, "spend"), TOTAL)


def test_an_answer_that_cannot_be_drawn_is_said(visit: Visit, world: World, watch: Watch) -> None:
    page = ready(visit(address(world)))
    page.route("**/api/debug*", lambda route: route.fulfill(json={"rows": "of another version"}))
    watch.forgiven.append("console error: TypeError")
    page.keyboard.press("3")
    expect(page.get_by_role("alert")).to_contain_text("could not draw this")
    page.unroute("**/api/debug*")
    page.get_by_role("button", name="Load again").click()
    expect(page.locator("[data-row]").first).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)
    page.keyboard.press("1")
    shows(figure(page, "spend"), TOTAL)


def test_a_slow_answer_never_overtakes_a_later_one(visit: Visit, world: World) -> None:
    (acme,) = world.query("cost", by=[], where=["tenant=acme"])
    page = ready(visit(address(world)))
    held: list[Route] = []
    page.route("**/api/executive*globex*", lambda route: held.append(route))
    field = page.get_by_role("combobox", name="Filter")
    field.fill("tenant=globex")
    field.press("Enter")
    expect(page.locator(".chip")).to_contain_text("globex")
    field.press("Backspace")
    field.fill("tenant=acme")
    field.press("Enter")
    shows(figure(page, "spend"), acme["cost"])
    assert held
    for route in held:
        with suppress(PlaywrightError):  # the page gave it up
            route.continue_()
    page.unroute("**/api/executive*globex*")
    expect(page.locator("main[aria-busy=false]")).to_be_visible()
    expect(page.locator(".chip")).to_contain_text("acme")
    shows(figure(page, "spend"), acme["cost"])


def test_nobody_else_may_ask(world: World) -> None:
    host, _, port = world.page.removeprefix("http://").rpartition(":")
    for path in ("/", "/api/about", "/api/query/total"):
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        connection.request("GET", path, headers={"Host": "attacker.example"})
        assert connection.getresponse().status == 403
        connection.close()
