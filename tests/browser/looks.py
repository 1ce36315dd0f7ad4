"""Where things are on the page, and what a figure has to say: the one place that knows its marks."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from playwright.sync_api import Locator, Page, expect

from tests.browser.world import SHOWN, World

VIEWS = {"executive": "Executive", "oncall": "On-call", "debug": "Debug"}


def address(world: World, view: str = "executive", **state: Any) -> str:
    """A deep link; the window that has the small world unless ``since`` says another."""
    window = {} if "since" in state else {"since": instant(SHOWN[0]), "until": instant(SHOWN[1])}
    given = {"view": view, **window, **{k: instant(v) if isinstance(v, datetime) else v for k, v in state.items()}}
    return f"{world.page}/?{urlencode({k: v for k, v in given.items() if v not in ('', None)}, doseq=True)}"


def instant(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def ready(page: Page) -> Page:
    """Wait until all of a view is drawn."""
    expect(page.locator("main[aria-busy=false]")).to_be_visible()
    return page


def state(page: Page) -> dict[str, list[str]]:
    """What the URL says."""
    return parse_qs(urlsplit(page.url).query)


def figure(page: Page | Locator, name: str) -> Locator:
    """A figure by its name."""
    return page.locator(f'[data-figure="{name}"]')


def section(page: Page | Locator, name: str) -> Locator:
    return page.locator(f'[data-section="{name}"]')


def row(within: Locator, value: str | None) -> Locator:
    """The row of a value of a dimension; None for calls without one."""
    return within.locator(f"[data-row={quoted(value or '')}]")


def quoted(text: str) -> str:
    """As a string of a CSS selector."""
    return '"' + "".join(f"\\{ord(c):x} " if c in '"\\\n\r\f' else c for c in text) + '"'


def panel(page: Page, kind: str) -> Locator:
    """The panel, when it shows this kind of thing."""
    found = page.locator(f'[data-panel="{kind}"]')
    expect(found).to_be_visible()
    return found


def amounts(within: Locator) -> Locator:
    """What has exact digits in a place."""
    return within.locator("[data-exact]")


def shows(where: Locator, value: Decimal | int | str) -> None:
    """Wait until the first exact number in a place is this one; zeros at the end of a fraction do not matter."""
    expect(amounts(where).first).to_have_attribute("data-exact", digits(value))


def digits(value: Decimal | int | str) -> re.Pattern[str]:
    text = format(Decimal(value).normalize(), "f")
    return re.compile("^" + re.escape(text) + ("0*$" if "." in text else r"(\.0*)?$"))


def numbers(within: Locator) -> list[Decimal]:
    """The exact numbers in a place, once there are any."""
    expect(amounts(within).first).to_be_attached()
    return [Decimal(each.get_attribute("data-exact") or "") for each in amounts(within).all()]


def usd(value: Decimal) -> str:
    """All digits of an amount, as people read them."""
    whole, _, fraction = format(value.normalize(), "f").partition(".")
    return f"${int(whole):,}" + (f".{fraction.ljust(2, '0')}" if fraction else "")
