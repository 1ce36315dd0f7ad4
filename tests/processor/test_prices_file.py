"""A price book that changes under a running process: good versions are taken, broken ones change nothing."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from tollspan.pricing import BookError, PriceEngine, Selectors
from tollspan.processor.counters import Counters
from tollspan.processor.prices_file import Prices

AT = datetime(2026, 11, 20, tzinfo=UTC)


def book(path: Path, amount: str, name: str = "house") -> Path:
    """Written as careful editors do: whole, under another name, then renamed."""
    draft = path.with_suffix(".new")
    draft.write_text(
        f"price_book: {{id: {name}, version: 1, currency: USD}}\n"
        f"prices:\n  - {{id: o, provider: openai, sku: m, meter: tokens.output, amount: '{amount}', per: 1}}\n"
    )
    draft.replace(path)
    return path


def price(engine: PriceEngine) -> Decimal | None:
    return engine.price({"tokens.output": 1}, at=AT, selectors=Selectors(provider="openai", model="m")).cost


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return book(tmp_path / "prices.yaml", "2")


def look(prices: Prices) -> None:
    """Two looks: a change is taken when it has stood for one."""
    prices.check()
    prices.check()


def test_a_good_new_version_takes_the_place_of_the_old(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters()
    prices = Prices(path, counters)
    engines: list[PriceEngine] = []
    prices.follow(engines.append)
    before = prices.engine.book_version
    book(path, "3")
    with caplog.at_level(logging.INFO):
        look(prices)
    assert [price(engine) for engine in engines] == [2, 3]
    assert prices.engine is engines[-1]
    assert counters.snapshot() == {"prices.reloaded": 1, "prices.reload_failed": 0}
    assert before in caplog.text
    assert prices.engine.book_version in caplog.text


def test_a_broken_version_changes_nothing_and_is_said_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters()
    prices = Prices(path, counters)
    health: list[bool] = []
    prices.watch_health(health.append)
    good = prices.engine
    path.write_text("prices: [{id: broken, meter: tokens.outptu}]")
    look(prices)
    os.utime(path)  # touched, and no better
    look(prices)
    assert prices.engine is good
    assert counters.snapshot() == {"prices.reloaded": 0, "prices.reload_failed": 1}
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1
    assert str(path) in prices.error
    assert health == [True, False]
    path.write_text("prices: [{id: broken in another way}]")
    look(prices)
    assert counters.get("prices.reload_failed") == 2
    assert health == [True, False], "told when it changes"
    book(path, "4")
    look(prices)
    assert (price(prices.engine), prices.error, health) == (4, "", [True, False, True])


@pytest.mark.parametrize("vanish", [True, False])
def test_a_file_that_comes_back_as_it_was_is_in_use_again(path: Path, vanish: bool) -> None:
    prices = Prices(path, Counters())
    good = prices.engine
    text = path.read_text()
    if vanish:
        path.unlink()
    else:
        path.write_text("nonsense")
    look(prices)
    assert prices.error
    path.write_text(text)
    look(prices)
    assert not prices.error
    assert prices.engine is good


def test_a_file_that_is_still_being_written_is_left_alone(path: Path) -> None:
    prices = Prices(path, Counters())
    path.write_text("")  # truncated, the rest is to come
    prices.check()
    book(path, "5")
    prices.check()
    assert not prices.error
    assert price(prices.engine) == 2
    prices.check()
    assert price(prices.engine) == 5


def test_a_file_that_is_only_touched_is_the_same_book(path: Path) -> None:
    counters = Counters()
    prices = Prices(path, counters)
    good = prices.engine
    os.utime(path, (1, 1))
    look(prices)
    assert prices.engine is good
    assert counters.get("prices.reloaded") == 0


def test_a_broken_book_is_an_error_at_the_start(path: Path) -> None:
    path.write_text("prices: [")
    with pytest.raises(BookError, match=r"prices\.yaml"):
        Prices(path, Counters())


def test_without_a_book_of_ones_own_nothing_is_watched() -> None:
    prices = Prices(None, Counters())
    prices.start()
    prices.reload()
    prices.stop()
    assert prices.engine.book_version


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)


def test_the_thread_sees_changes_and_reads_at_once_when_asked(path: Path) -> None:
    prices = Prices(path, Counters(), check_s=0.02)
    prices.start()
    try:
        book(path, "6")
        wait(lambda: price(prices.engine) == 6)
    finally:
        prices.stop()
    slow = Prices(path, Counters(), check_s=3600.0)
    slow.start()
    try:
        book(path, "7")
        slow.reload()
        wait(lambda: price(slow.engine) == 7)
    finally:
        slow.stop()


def test_the_same_mistake_again_after_the_book_was_whole_is_said_again(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counters = Counters()
    prices = Prices(path, counters)
    health: list[bool] = []
    prices.watch_health(health.append)
    whole = path.read_text()
    for _ in range(2):
        path.write_text("nonsense")
        look(prices)
        assert prices.error
        path.write_text(whole)
        look(prices)
        assert not prices.error
    for _ in range(2):
        path.unlink()
        look(prices)
        assert prices.error
        path.write_text(whole)
        look(prices)
    assert health == [True, *[False, True] * 4]
    assert counters.get("prices.reload_failed") == 4
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 4
