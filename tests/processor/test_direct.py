"""Calls without threads: what grpcio has to be like, what happens where it is not, and that none waits for another."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import _server

from tollspan.processor import direct
from tollspan.processor.receive import EXPORT

from .test_grpc_port import stalled, until
from .test_receive import Line, request, span_names


def receiving_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tollspan-receive")]


def test_the_installed_grpcio_is_as_it_has_to_be() -> None:
    assert direct.trouble() == ""


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("_send_status_from_server", lambda state, code: None),
        ("_receive_message", None),
        ("_RPCState", object),
        ("_RECEIVE_MESSAGE_TOKEN", "message"),
        ("_select_thread_pool_for_behavior", lambda behavior, default_thread_pool: default_thread_pool),
    ],
)
def test_another_grpcio_is_served_with_threads_and_the_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str, instead: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_server, name, instead)
        why = direct.trouble()
    assert why
    monkeypatch.setattr("tollspan.processor.receive.trouble", lambda: why)
    line = Line(tmp_path)
    payload = request()
    assert line.send(payload) == b""
    assert line.journaled() == [payload]
    assert why in caplog.text
    assert receiving_threads()
    line.close()


def test_no_thread_waits_for_a_call(tmp_path: Path) -> None:
    line = Line(tmp_path)
    with ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda number: line.send(request(name=str(number))), range(200)))
    gate = threading.Event()
    calls = [stalled(line.channel, gate) for _ in range(20)]
    assert until(lambda: line.receiver._patience.waiting == 20)
    assert receiving_threads() == []
    gate.set()
    for call in calls:
        assert call.result(20) == b""
    assert len(span_names(line.journaled())) == 220
    assert (line.receiver._calls, line.receiver._served, line.intake.bodies.held) == (0, 0, 0)
    line.close()


def test_a_large_request_does_not_hold_up_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soon = 1000
    monkeypatch.setattr("tollspan.processor.receive.SOON_BYTES", soon)
    monkeypatch.setattr("tollspan.processor.receive.SLOW_SOON_BYTES", soon)
    line = Line(tmp_path)
    check, gate, begun = line.intake._check, threading.Event(), threading.Event()

    def slow(payload: bytes) -> Any:
        if len(payload) > soon:
            begun.set()
            assert gate.wait(20)
        return check(payload)

    monkeypatch.setattr(line.intake, "_check", slow)
    large = line.channel.unary_unary(EXPORT).future(request(name="z" * 2 * soon), timeout=30)
    assert begun.wait(20)
    line.send(request(name="small"))
    assert not large.done()
    gate.set()
    assert large.result(20) == b""
    line.close()


def test_calls_behind_the_limit_are_served_in_turn_also_when_many_of_them_are_gone(tmp_path: Path) -> None:
    """Thousands that were given up while they waited are passed over, one after the other."""
    line = Line(tmp_path, threads=1)
    gate = threading.Event()
    first = stalled(line.channel, gate)
    assert until(lambda: line.receiver._patience.waiting == 1)
    gone = [line.channel.unary_unary(EXPORT).future(request(name="gone"), timeout=60) for _ in range(900)]
    last = line.channel.unary_unary(EXPORT).future(request(name="last"), timeout=60)
    assert until(lambda: len(line.receiver._behind) == 901)
    for call in gone:
        call.cancel()
    time.sleep(0.5)
    gate.set()
    assert first.result(20) == b""
    assert last.result(20) == b""
    assert until(lambda: line.receiver._calls == 0)
    assert "last" in span_names(line.journaled())
    line.close()


def test_an_answer_that_comes_too_late_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk hangs, the sender is told to come again, and what becomes durable then is not counted as accepted."""
    monkeypatch.setattr("tollspan.processor.intake.COMMIT_LIMIT_S", 0.01)
    line = Line(tmp_path)
    gate, sync = threading.Event(), os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (gate.wait(20), sync(fd)))
    payload = request()
    assert line.refused(payload).code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
    gate.set()
    assert until(lambda: payload in line.journaled())
    assert line.counters.get("receive.accepted") == 0
    assert line.receiver.drain(10)
    assert line.receiver._calls == 0
    line.close()


def test_a_cancelled_call_is_durable_all_the_same_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(tmp_path)
    begun, gate, sync = threading.Event(), threading.Event(), os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (begun.set(), gate.wait(20), sync(fd)))
    call = line.channel.unary_unary(EXPORT).future(request(name="left"), timeout=60)
    assert begun.wait(20)
    call.cancel()
    gate.set()
    assert until(lambda: line.receiver._calls == 0)
    monkeypatch.undo()
    line.send(request(name="next"))
    assert span_names(line.journaled()) == ["left", "next"]
    line.receiver.stop()
    line.close()


def test_a_fault_of_ours_ends_one_call_and_not_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(line.intake, "take_soon", lambda *_: 1 // 0)
        assert line.refused(request()).code() is grpc.StatusCode.INTERNAL  # type: ignore[attr-defined]
    line.send(request())
    assert line.receiver._calls == 0
    line.close()


def test_a_server_stops_while_calls_wait_for_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For their turn, their body, and the disk."""
    line = Line(tmp_path, threads=3)
    begun, gate, sync = threading.Event(), threading.Event(), os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (begun.set(), gate.wait(20), sync(fd)))
    waiting = line.channel.unary_unary(EXPORT).future(request(), timeout=60)
    assert begun.wait(20)
    bodies = [stalled(line.channel, gate) for _ in range(2)]
    assert until(lambda: line.receiver._patience.waiting == 2)
    turn = line.channel.unary_unary(EXPORT).future(request(), timeout=60)
    assert until(lambda: len(line.receiver._behind) == 1)
    assert not line.receiver.drain(0.01)
    line.receiver.stop(0.2)
    for call in (waiting, *bodies, turn):
        assert call.exception(20) is not None
    gate.set()
    line.close()
