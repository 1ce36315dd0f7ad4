"""A browser and pages in it that are watched: whatever a page logs, breaks or asks of other hosts fails the test."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from tests.browser.chromium import UnavailableError, axe, launch
from tests.browser.world import World, filled, served

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

WAIT_MS = 40_000
AXE_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


# Not for longer than a file: while it runs, playwright holds this thread's event loop, and other tests need their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium that can reach nothing but this machine; skips where there is none."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    # A wait ends when what is waited for is there: this is for machines that are busy with other things.
    playwright.expect.set_options(timeout=WAIT_MS)
    elsewhere = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    with playwright.sync_playwright() as started:
        try:
            launched = launch(started, elsewhere)
        except UnavailableError as error:
            pytest.skip(str(error))
        yield launched
        launched.close()


@dataclass
class Watch:
    """What went wrong in the pages of one test.

    Attributes:
        problems: console errors, exceptions, violations of the content security policy, requests to other hosts.
        forgiven: patterns of problems that a test makes on purpose.
        requests: what was asked for, in order.
    """

    problems: list[str] = field(default_factory=list)
    forgiven: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def page(self, page: Page, origin: str) -> None:
        """Watch one."""

        def console(message: Any) -> None:
            if message.type in ("error", "warning"):
                where = message.location.get("url", "")
                self.problems.append(f"console {message.type}: {message.text} ({where})")

        def request(asked: Any) -> None:
            self.requests.append(asked.url)
            url = urlsplit(asked.url)
            if url.scheme not in ("data", "blob") and not asked.url.startswith(origin):
                self.problems.append(f"request to another host: {asked.url}")

        page.on("console", console)
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        page.on("dialog", lambda dialog: (self.problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", request)

    def unforgiven(self) -> list[str]:
        return [each for each in self.problems if not any(re.search(pattern, each) for pattern in self.forgiven)]


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Takes note of what goes wrong; fails the test at its end."""
    watched = Watch()
    yield watched
    assert not watched.unforgiven()


Visit = Callable[..., "Page"]


@pytest.fixture
def visit(browser: Browser, watch: Watch) -> Iterator[Visit]:
    """Opens a watched page in a context of its own: ``visit(url, viewport=…, color_scheme="dark")``."""
    contexts = []

    def opened(url: str, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "en-US", **options})
        context.set_default_timeout(WAIT_MS)
        contexts.append(context)
        page = context.new_page()
        parts = urlsplit(url)
        watch.page(page, f"{parts.scheme}://{parts.netloc}/")
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def violations() -> Callable[[Page], list[str]]:
    """Says what axe-core finds on a page that is a serious or critical hindrance: rule, element, why."""
    try:
        script = axe()
    except UnavailableError as error:
        pytest.skip(str(error))

    def found(page: Page) -> list[str]:
        if not page.evaluate("typeof window.axe === 'object'"):
            page.evaluate(script)
        rules = {"runOnly": {"type": "tag", "values": AXE_RULES}, "resultTypes": ["violations"]}
        result = page.evaluate("options => axe.run(document, options)", rules)
        return [
            f"{each['id']} ({each['impact']}): {node['html'][:160]} — {node['failureSummary'][:300]}"
            for each in result["violations"]
            if each["impact"] in ("serious", "critical")
            for node in each["nodes"]
        ]

    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A service with the small world and the hostile names in it; nobody writes to it."""
    with served(tmp_path_factory.mktemp("world")) as service:
        yield filled(service)
