"""The page in a real Chromium: its figures are the ledger's, and each leads down to a single charge and its price."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest

pytest.importorskip("playwright.sync_api", reason="pip install playwright")

from playwright.sync_api import expect

from tests.browser.conftest import Visit, Watch
from tests.browser.looks import (
    VIEWS,
    address,
    amounts,
    figure,
    numbers,
    panel,
    ready,
    row,
    section,
    shows,
    state,
    usd,
)
from tests.browser.world import EMPTY_DAY, TOTAL, World
from tollspan.processor import queries


def test_the_headline_is_what_the_ledger_says(visit: Visit, world: World) -> None:
    (total,) = world.query("total")
    assert total["cost"] == TOTAL
    page = ready(visit(address(world)))
    spend = figure(page, "spend")
    shows(spend, TOTAL)
    expect(amounts(spend).first).to_have_attribute("title", usd(TOTAL))
    # What the total leaves out stands beside it.
    expect(figure(page, "unpriced")).to_contain_text("1 of 13 without a price")
    shows(figure(page, "inferences"), total["inferences"])
    (each,) = [line for line in world.query("cost-per-inference", by=[]) if line["component"] == "all"]
    shown = numbers(figure(page, "cost_per_inference"))[0]
    assert abs(shown - each["cost_per_inference"]) <= Decimal("1e-12")


@pytest.mark.parametrize("name", ["feature", "tenant", "model"])
def test_breakdowns_are_the_querys(visit: Visit, world: World, name: str) -> None:
    page = ready(visit(address(world)))
    rows = world.query("cost", by=[name])
    assert sum(line["cost"] or 0 for line in rows) == TOTAL
    shown = section(page, f"by.{name}")
    for line in rows:
        found = row(shown, line[name])
        if line["cost"] is None:
            expect(found).to_contain_text("unknown")
        else:
            expect(found.locator(f'[title="{usd(line["cost"])}"]').first).to_be_visible()


def test_components_and_the_trend_add_up(visit: Visit, world: World) -> None:
    page = ready(visit(address(world)))
    parts = section(page, "components").locator("[data-row]")
    on_paper = {"model": "0.06224", "compute": "0.06", "storage": "0.011", "telemetry": "0.01", "network": "0.0039"}
    for name, cost in on_paper.items():
        expect(row(section(page, "components"), name).locator(f'[title="{usd(Decimal(cost))}"]')).to_be_visible()
    expect(parts).to_have_count(len(on_paper))
    trend = section(page, "trend")
    expect(trend.locator("svg")).to_be_visible()
    trend.get_by_role("button", name="Table").click()
    expect(trend.get_by_role("table")).to_be_visible()
    costs = [numbers(line)[0] for line in trend.locator("tbody tr").all()]
    assert sum(costs) == TOTAL


def test_from_the_headline_to_a_single_charge_and_its_price(visit: Visit, world: World) -> None:
    page = ready(visit(address(world)))
    figure(page, "spend").click()

    # What is behind the figure: the same sum, its definition, its SQL, and all of its calls.
    behind = panel(page, "figure")
    shows(figure(behind, "calls.cost"), TOTAL)
    expect(behind).to_contain_text("FINAL")
    calls = behind.locator("[data-call]")
    (count,) = world.rows("SELECT count() AS n FROM ledger FINAL WHERE start_time >= now() - INTERVAL 1 DAY")
    shows(figure(behind, "calls.calls"), count["n"])
    expect(calls).to_have_count(count["n"])
    costs = [numbers(line)[0] for line in calls.all() if "$" in (line.text_content() or "")]
    assert sum(costs) == TOTAL
    assert costs == sorted(costs, reverse=True)

    # The call of the big model: 2000 tokens in, 100 out.
    (dear,) = world.rows(
        "SELECT lower(hex(trace_id)) AS trace, lower(hex(span_id)) AS span, cost FROM ledger FINAL"
        " WHERE request_model = 'big' AND tenant = 'acme'"
    )
    behind.locator(f'[data-call="{dear["trace"]}/{dear["span"]}"] .row-link').click()
    call = panel(page, "charge")
    assert dear["cost"] == Decimal("0.024")
    shows(figure(call, "charge.cost"), dear["cost"])
    charges = world.rows(
        "SELECT charge.1 AS meter, charge.2 AS cost, charge.3 AS price_id, charge.4 AS quantity FROM ledger FINAL"
        " ARRAY JOIN arrayZip(`charges.meter`, `charges.cost`, `charges.price_id`, `charges.quantity`) AS charge"
        f" WHERE span_id = unhex('{dear['span']}')"
    )
    assert {charge["meter"]: charge["cost"] for charge in charges} == {
        "tokens.input.uncached": Decimal("0.02"),
        "tokens.output": Decimal("0.004"),
    }
    expect(call.locator("[data-charge]")).to_have_count(len(charges))
    for charge in charges:
        shown = call.locator(f'[data-charge="{charge["meter"]}"]')
        shows(shown, charge["cost"])
        price = shown.locator("[data-price]")
        expect(price).to_have_attribute("data-price", charge["price_id"])
        if not price.evaluate("each => each.open"):
            price.locator("summary").click()
        expect(price).to_contain_text("paper")
    # 2,000 tokens at 10 USD a million, in words.
    words = call.locator('[data-charge="tokens.input.uncached"]')
    for part in ("2,000 token", "10 USD", "1,000,000 token", "= 0.02 USD"):
        expect(words).to_contain_text(part)

    # The whole trace, in which the call is marked.
    call.get_by_role("link", name="Whole trace").click()
    trace = panel(page, "trace")
    (sums,) = world.rows(f"SELECT sum(cost) AS cost FROM ledger FINAL WHERE trace_id = unhex('{dear['trace']}')")
    assert sums["cost"] == Decimal("0.02864")
    shows(figure(trace, "trace.cost"), sums["cost"])
    expect(trace.locator(f'[data-span="{dear["span"]}"]')).to_have_class("chosen")
    # The agent is a wrapper: its two calls are beneath it, and their sum beside it.
    expect(trace.locator('[data-span="000000000000000a"]')).to_have_attribute("aria-level", "1")
    shows(trace.locator('[data-span="000000000000000a"]'), Decimal("0.00464"))
    expect(trace.locator('[data-span="0000000000000001"]')).to_have_attribute("aria-level", "2")

    # The way back is the way down.
    for kind in ("charge", "figure"):
        page.go_back()
        panel(page, kind)
    page.go_back()
    expect(page.locator("[data-panel]")).to_have_count(0)


def test_what_is_open_is_in_the_link(visit: Visit, world: World) -> None:
    page = ready(visit(address(world)))
    figure(page, "spend").click()
    panel(page, "figure").locator("[data-call] .row-link").first.click()
    shown = panel(page, "charge")
    cost = numbers(figure(shown, "charge.cost"))[0]
    other = visit(page.url)
    shows(figure(panel(other, "charge"), "charge.cost"), cost)
    shows(figure(other, "spend"), TOTAL)


def test_every_figure_adds_up_to_the_calls_behind_it(visit: Visit, world: World) -> None:
    page = ready(visit(address(world)))
    for name in ("feature", "tenant", "model"):
        for line in world.query("cost", by=[name]):
            row(section(page, f"by.{name}"), line[name]).locator(".row-link").click()
            behind = panel(page, "figure")
            if line["cost"] is None:
                expect(figure(behind, "calls.cost")).to_contain_text("unknown")
            else:
                shows(figure(behind, "calls.cost"), line["cost"])
            page.keyboard.press("Escape")
            expect(page.locator("[data-panel]")).to_have_count(0)
    row(section(page, "components"), "network").locator(".row-link").click()
    expect(panel(page, "figure").locator("[data-call]")).to_have_count(1)


def test_filters_are_in_the_url(visit: Visit, world: World) -> None:
    (acme,) = world.query("cost", by=[], where=["tenant=acme"])
    page = ready(visit(address(world)))
    field = page.get_by_role("combobox", name="Filter")
    field.fill("tenant=ac")
    page.get_by_role("option", name="acme").click()
    shows(figure(page, "spend"), acme["cost"])
    assert state(page)["where"] == ["tenant=acme"]

    page.reload()
    shows(figure(ready(page), "spend"), acme["cost"])
    expect(page.locator(".chip", has_text="acme")).to_be_visible()

    # All but acme: the other part of the bill.
    page.locator(".chip", has_text="acme").get_by_role("link", name="tenant is: turn").click()
    shows(figure(page, "spend"), TOTAL - acme["cost"])
    assert state(page)["where"] == ["tenant!=acme"]

    page.go_back()
    shows(figure(page, "spend"), acme["cost"])
    page.go_back()
    shows(figure(page, "spend"), TOTAL)
    page.go_forward()
    shows(figure(page, "spend"), acme["cost"])
    page.get_by_role("link", name="Remove filter tenant acme").click()
    shows(figure(page, "spend"), TOTAL)
    assert "where" not in state(page)


def test_unknown_is_never_zero(visit: Visit, world: World) -> None:
    (forecast,) = queries.run(world.reader, "forecast", where=["model=mystery"])
    assert forecast["unpriced_inferences"] == 1
    assert [forecast[name] for name in ("spent", "forecast", "forecast_from", "forecast_to")] == [None] * 4
    for view in VIEWS:
        page = ready(visit(address(world, view, where="model=mystery", budget="5")))
        main = page.get_by_role("main")
        expect(main).to_contain_text("unknown")
        for shown in main.locator("[data-figure], dd, td").all():
            assert not re.search(r"\$0(\.0*)?([^.\d]|$)", shown.text_content() or ""), shown.text_content()
        expect(main).not_to_contain_text("NaN")


def test_a_link_with_filters_shows_the_same_in_another_browser(visit: Visit, world: World) -> None:
    where = ["tenant=globex", "model=small"]
    (line,) = world.query("cost", by=[], where=where)
    page = ready(visit(address(world, where=where, by="model")))
    shows(figure(page, "spend"), line["cost"])
    expect(page.locator(".chip")).to_have_count(2)
    expect(page.get_by_label("Break down by")).to_have_value("model")


def test_the_window_is_in_the_url(visit: Visit, world: World) -> None:
    page = ready(visit(address(world)))
    page.get_by_role("group", name="Window").get_by_role("link", name="7d").click()
    expect(page).to_have_url(re.compile(r"\?since=7d$"))
    shows(figure(page, "spend"), TOTAL)
    page.get_by_role("group", name="Window").get_by_role("link", name="30d").click()
    # The day with the hostile names is in it.
    shows(figure(page, "spend"), world.rows("SELECT sum(cost) AS cost FROM ledger FINAL")[0]["cost"])


@pytest.mark.parametrize("view", VIEWS)
def test_each_view_opens_by_its_link_and_its_tab(visit: Visit, world: World, view: str) -> None:
    page = ready(visit(address(world, "debug" if view == "executive" else "executive")))
    page.get_by_role("navigation", name="Views").get_by_role("link", name=VIEWS[view]).click()
    expect(page.locator(f'main[data-view="{view}"][aria-busy=false]')).to_be_visible()
    expect(page).to_have_title(f"{VIEWS[view]} · Tollspan")
    page.reload()
    expect(page.locator(f'main[data-view="{view}"][aria-busy=false]')).to_be_visible()


def test_on_call_says_what_happens(visit: Visit, world: World) -> None:
    page = ready(visit(address(world, "oncall", budget="1")))
    (total,) = world.query("total")
    shows(figure(page, "cost"), TOTAL)
    shows(figure(page, "inferences"), total["inferences"])
    expect(figure(page, "retries")).to_contain_text("1")
    expect(figure(page, "cold_starts")).to_contain_text("1")
    expect(section(page, "readiness")).to_contain_text("Ready")
    expect(section(page, "budget")).to_contain_text("$1.00")
    for name in ("rate", "cost", "errors", "latency"):
        expect(section(page, name).locator("svg")).to_be_visible()
    section(page, "latency").get_by_role("button", name="Table").click()
    expect(section(page, "latency").get_by_role("table")).to_be_visible()
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("button", name="Resume")).to_be_visible()


def test_debug_leads_from_traces_to_their_charges(visit: Visit, world: World) -> None:
    page = ready(visit(address(world, "debug")))
    traces = world.query("traces")
    shown = section(page, "traces").locator("[data-row]")
    expect(shown).to_have_count(len(traces))
    assert [each.get_attribute("data-row") for each in shown.all()] == [line["trace_id"] for line in traces]
    models = {line["model"]: line for line in world.query("cost", by=["model"], where=["kind=inference"])}
    for model in ("big", "small", "mystery"):
        found = row(section(page, "models"), model)
        if models[model]["cost"] is None:
            expect(found).to_contain_text("unknown")
        else:
            expect(found.locator(f'[title="{usd(models[model]["cost"])}"]')).to_be_visible()
    expect(section(page, "batches").locator("tbody tr")).not_to_have_count(0)
    expect(section(page, "features").locator("tbody tr")).not_to_have_count(0)
    row(section(page, "traces"), traces[0]["trace_id"]).locator(".row-link").click()
    tree = panel(page, "trace")
    shows(figure(tree, "trace.cost"), traces[0]["cost"])
    tree.locator(".row-link").first.click()
    expect(panel(page, "charge").locator("[data-price]").first).to_be_visible()


def test_every_measure_answers_on_the_page(visit: Visit, world: World) -> None:
    page = ready(visit(address(world)))
    page.keyboard.press("m")
    expect(panel(page, "measures").get_by_role("link", name="cost-per-inference").first).to_be_visible()
    panel(page, "measures").get_by_role("searchbox").fill("retry inflation")
    panel(page, "measures").get_by_role("link", name="retry-inflation").click()
    found = panel(page, "measure")
    (line,) = world.query("retry-inflation", by=[])
    expect(found).to_contain_text(format(line["factor"], "f")[:5] if "factor" in line else "")
    expect(found.get_by_role("alert")).to_have_count(0)


def test_a_window_with_no_data_says_so(visit: Visit, world: World) -> None:
    for view in VIEWS:
        page = ready(visit(address(world, view, since=EMPTY_DAY, until=EMPTY_DAY.replace(minute=30))))
        expect(page.get_by_role("main")).to_contain_text("Everything there is")
        expect(page.get_by_role("main")).not_to_contain_text("NaN")
    page.get_by_role("link", name="Everything there is").click()
    expect(page.locator("[data-row]").first).to_be_visible()


def test_an_unknown_dimension_in_the_url_is_said(visit: Visit, world: World, watch: Watch) -> None:
    watch.forgiven.append("status of 400")
    page = visit(address(world, where="tennant=acme"))
    alert = page.get_by_role("alert")
    expect(alert).to_contain_text("tennant")
    expect(alert).to_contain_text("tenant")
    # One step from there to something that works.
    page.get_by_role("link", name="Remove filter tennant acme").click()
    shows(figure(ready(page), "spend"), TOTAL)
    expect(alert).to_have_count(0)


@pytest.mark.parametrize(
    "state",
    [
        {"since": "yesterday-ish"},
        {"since": "2026-11-02", "until": "2026-11-01"},
        {"by": "shoesize"},
        {"open": "trace/zz"},
        {"open": "trace/" + "f" * 32},
        {"open": "charge/" + "f" * 32 + "/" + "e" * 16},
        {"open": "nonsense/%00"},
        {"open": "figure/no-such-query"},
        {"view": "nowhere"},
        {"where": "=="},
        {"where": "tenant"},
    ],
    ids=str,
)
def test_links_that_are_wrong_never_break_the_page(
    visit: Visit, world: World, watch: Watch, state: dict[str, str]
) -> None:
    watch.forgiven.append("status of 40[04]")
    page = visit(address(world, **{"view": "executive", **state}))
    said = page.get_by_role("alert").or_(page.locator("[data-panel]")).or_(figure(page, "spend"))
    expect(said.first).to_be_visible()
    expect(page.get_by_role("navigation", name="Views")).to_be_visible()


def test_two_tabs_do_not_disturb_each_other(visit: Visit, world: World, watch: Watch) -> None:
    first = ready(visit(address(world)))
    second = first.context.new_page()
    watch.page(second, world.page)
    second.goto(address(world, where="tenant=acme"))
    (acme,) = world.query("cost", by=[], where=["tenant=acme"])
    shows(figure(second, "spend"), acme["cost"])
    first.get_by_role("button", name="Load again").click()
    shows(figure(first, "spend"), TOTAL)
    assert "where" not in state(first)


def test_a_row_opens_in_a_tab_of_its_own(visit: Visit, world: World, watch: Watch) -> None:
    page = ready(visit(address(world)))
    link = row(section(page, "by.tenant"), "acme").locator(".row-link")
    # The click is the browser's: this one, in its smallest build, crashes or hangs at every third tab that it opens so.
    left = """link => {
        let own = null;
        addEventListener("click", event => { own = event.defaultPrevented; event.preventDefault(); }, { once: true });
        link.dispatchEvent(new MouseEvent("click", { ctrlKey: true, bubbles: true, cancelable: true }));
        return own === false;
    }"""
    assert link.evaluate(left)
    opened = page.context.new_page()
    watch.page(opened, world.page)
    opened.goto(link.evaluate("link => link.href"))
    shows(
        figure(panel(opened, "figure"), "calls.cost"),
        world.query("cost", by=[], where=["tenant=acme"])[0]["cost"],
    )
    expect(page.locator("[data-panel]")).to_have_count(0)
