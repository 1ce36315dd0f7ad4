"""Two thousand connections at once, stalled ones among them, and a good sender who is served all the while."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tollspan.processor.receive import EXPORT

from .test_receive import request

CROWD = 2000
MEMORY = 600 << 20
"""Resident bytes that the server may take while it holds the crowd."""

SERVER = """
import sys, threading
from tollspan.processor.counters import Counters
from tollspan.processor.intake import Intake
from tollspan.processor.journal import Journal
from tollspan.processor.receive import GrpcSettings, Receiver
from tollspan.processor.receive_http import HttpReceiver, HttpSettings
counters = Counters()
intake = Intake(Journal(sys.argv[1], counters=counters), counters=counters)
receivers = (
    Receiver(intake, address="127.0.0.1:0", settings=GrpcSettings()),
    HttpReceiver(intake, address="127.0.0.1:0", settings=HttpSettings()),
)
print(*(each.start() for each in receivers), flush=True)
sys.stdin.read()
print(counters.get("receive.accepted"), counters.get("receive.calls"), flush=True)
for each in receivers:
    each.stop()
intake.journal.close()
"""


class Server:
    """Both receivers in a process of their own, so that its memory can be told from the crowd's."""

    def __init__(self, folder: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.grpc, self.http = self.process.stdout.readline().split()

    @property
    def resident(self) -> int:
        return self._status("VmRSS") * 1024

    @property
    def peak(self) -> int:
        return self._status("VmHWM") * 1024

    @property
    def threads(self) -> int:
        return self._status("Threads")

    def _status(self, name: str) -> int:
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+)", text)
        assert found is not None
        return int(found[1])

    def stop(self) -> tuple[int, int]:
        """Ends it; how many requests it accepted, and how many calls came over gRPC."""
        said, _ = self.process.communicate(timeout=60)
        accepted, calls = map(int, said.split())
        return accepted, calls


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < CROWD + 500:
        pytest.skip(f"no more than {hard} files may be open here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, CROWD + 500), hard))
    opened = Server(tmp_path / "journal")
    yield opened
    if opened.process.poll() is None:
        opened.process.kill()
        opened.process.wait()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def crowd(address: str, *sends: bytes) -> Iterator[list[socket.socket]]:
    """Connections that each send one of these in turn, and then nothing."""
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(CROWD):
            client = stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
            client.sendall(sends[number % len(sends)])
            clients.append(client)
        yield clients


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header in HPACK, spelt out."""
    return b"\x00" + bytes([len(name)]) + name + bytes([len(value)]) + value


HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0)
HEAD = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", EXPORT.encode()),
        (b":authority", b"x"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)
CALL = HELLO + frame(1, 4, 1, HEAD)
PART = frame(0, 0, 1, b"\0" + (50_000).to_bytes(4, "big") + os.urandom(10_000))
"""A fifth of a message."""


def good(server: Server, number: int) -> float:
    """A sender who does all right, over both protocols; seconds that it took."""
    began = time.monotonic()
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(server.grpc, options=options) as channel:
        while (call := channel.unary_unary(EXPORT).future(request(8, f"grpc {number}"), timeout=60)).exception():
            # A machine that is busy with other things may be late with his body too; exporters try again.
            assert call.code() is grpc.StatusCode.CANCELLED
    connection = http.client.HTTPConnection(server.http, timeout=60)
    connection.request("POST", "/v1/traces", request(8), {"content-type": "application/x-protobuf"})
    assert connection.getresponse().read() == b""
    connection.close()
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("sends", "calls"),
    [
        ((HELLO,), 0),
        ((CALL,), CROWD),
        ((CALL + PART,), CROWD),
        ((b"",), 0),
        ((HELLO, CALL, CALL + PART, b"P"), CROWD // 2),
    ],
    ids=["idle", "heads", "parts of bodies", "nothing", "all kinds"],
)
def test_2000_stalled_grpc_connections_hold_up_nobody(server: Server, sends: tuple[bytes, ...], calls: int) -> None:
    good(server, 0)
    with crowd(server.grpc, *sends):
        times = [good(server, number) for number in range(1, 6)]
        assert max(times) < 20, times
        assert server.peak < MEMORY, server.peak
    accepted, began = server.stop()
    assert accepted == 12, "each of them once"
    assert began >= calls * 3 // 4  # so that they were really there


HTTP_HEAD = b"POST /v1/traces HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-protobuf\r\n"


@pytest.mark.parametrize(
    "sends",
    [
        (b"",),
        (HTTP_HEAD,),
        (HTTP_HEAD + b"content-length: 50000\r\n\r\n" + os.urandom(10_000),),
        (
            HTTP_HEAD + b"transfer-encoding: chunked\r\n\r\n5\r\nab",
            b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n",
            b"\x16\x03",
        ),
    ],
    ids=["nothing", "heads", "parts of bodies", "all kinds"],
)
def test_2000_stalled_http_connections_hold_up_nobody(server: Server, sends: tuple[bytes, ...]) -> None:
    good(server, 0)
    with crowd(server.http, *sends):
        times = [good(server, number) for number in range(1, 6)]
        assert max(times) < 20, times
        assert server.peak < MEMORY, server.peak
    assert server.stop() == (12, 6)


def test_2000_good_connections_are_all_served(server: Server) -> None:
    """Kept open, as exporters keep them."""
    payload = request(2)
    head = HTTP_HEAD + b"content-length: %d\r\n\r\n" % len(payload)
    with crowd(server.http, head + payload) as clients:
        for client in clients:
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
        assert server.peak < MEMORY, server.peak
        for client in clients:
            client.sendall(head + payload)
        for client in clients:
            assert client.recv(4096).startswith(b"HTTP/1.1 200")
    assert server.stop() == (2 * CROWD, 0)
