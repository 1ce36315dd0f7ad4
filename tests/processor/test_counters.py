"""Counters lose nothing between threads and never go down."""

from __future__ import annotations

import threading

import pytest

from tollspan.processor.counters import Counters


def test_no_count_is_lost_between_threads() -> None:
    counters = Counters()

    def work() -> None:
        for _ in range(2000):
            counters.add("a")
            counters.add_all({"a": 1, "b": 2})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.snapshot() == {"a": 16_000, "b": 16_000}


def test_zero_makes_a_name_appear_and_an_unknown_one_reads_zero() -> None:
    counters = Counters()
    counters.add("seen", 0)
    assert counters.snapshot() == {"seen": 0}
    assert counters.get("other") == 0
    assert "other" not in counters.snapshot()


def test_a_counter_cannot_go_down() -> None:
    counters = Counters()
    with pytest.raises(ValueError, match="cannot go down"):
        counters.add("a", -1)
    with pytest.raises(ValueError, match="cannot go down"):
        counters.add_all({"a": 5, "b": -1})
    assert counters.snapshot() == {}
