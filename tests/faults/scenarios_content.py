"""Hostile spans, hostile requests and hostile connections, always beside good ones."""

from __future__ import annotations

import resource
import socket
import time
import zlib
from collections.abc import Iterable
from functools import partial
from typing import Any, Final

import grpc
import pyarrow as pa
import pytest
from line import METHOD
from world import Figures, World

BOUND_MIB: Final = 900
"""Resident memory that no hostile sender may push the service above."""


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field in protobuf's wire form."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """In protobuf's wire form."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def request(spans: Iterable[bytes]) -> bytes:
    """An export request of encoded spans."""
    return field(1, field(2, b"".join(field(2, span) for span in spans)))


def attribute(key: str, value: bytes) -> bytes:
    """An encoded attribute of a span; ``value`` is an encoded ``AnyValue``."""
    return field(9, field(1, key.encode()) + field(2, value))


def nested(depth: int) -> bytes:
    """An ``AnyValue``: arrays in arrays."""
    value = field(1, b"at last")
    for _ in range(depth):
        value = field(5, field(1, value))
    return value


def hostile_spans(world: World, long: bool) -> Figures:
    """Each of a request's hostile spans is stored or refused alone; the good ones beside it are billed."""
    line = world.line()
    clients = world.clients(line)
    make = world.generator.call
    mib = 2**20
    usage = "gen_ai.usage.input_tokens"
    odd: dict[str, tuple[dict[str, Any], bytes]] = {
        "bad UTF-8": ({}, attribute("note", field(1, b"caf\xe9 \xff\xfe"))),
        "a key of bad UTF-8": ({}, field(9, field(1, b"\xc3\x28") + field(2, field(1, b"x")))),
        "nested 10,000 deep": ({}, attribute("deep", nested(10_000))),
        "a value of 10 MiB": ({}, attribute("long", field(1, b"x" * 10 * mib))),
        "100,000 attributes": ({}, b"".join(attribute(f"key.{n}", field(1, b"v")) for n in range(100_000))),
        "no value": ({}, attribute("empty", b"")),
        "an unknown field": ({}, field(1000, b"of a later protocol")),
        "NaN tokens": ({"tokens": None, "status": "invalid", "more": {usage: float("nan")}}, b""),
        "infinite tokens": ({"tokens": None, "status": "invalid", "more": {usage: float("inf")}}, b""),
        "half a token": ({"tokens": None, "status": "invalid", "more": {usage: 0.5}}, b""),
        "negative tokens": ({"tokens": (-1, 5), "status": "invalid"}, b""),
        "2^63 - 1 tokens": ({"tokens": (2**63 - 1, 5), "status": "invalid"}, b""),
        "words for tokens": ({"tokens": None, "status": "invalid", "more": {usage: "a lot"}}, b""),
        "an id that cannot be": ({"rejected": True}, b""),
        "a NUL in a name": ({"more": {"tollspan.feature": "a\0b"}}, b""),
    }
    rounds = 20 if long else 1
    for _ in range(rounds):
        for given, more in odd.values():
            batch = [make(), make(**given), make(), *world.generator.trace()]
            spans = [call.message().SerializeToString() for call in batch]
            spans[1] += more
            reply = partial(clients.by_grpc, body=request(spans))
            assert clients.deliver(batch, reply), f"refused: {world.account.refusals}"
    recovery = world.landed()
    figures = world.finish("hostile spans among good ones", rounds * len(odd), recovery)
    counted = sum(n for name, n in world.stats.items() if name.startswith("receive.rejected."))
    told = world.account.left_out
    figures.problems += [] if counted == told == rounds else [f"{counted} rejected spans counted, {told} told of"]
    figures.problems += bounded(figures)
    return figures


def bombs(world: World, long: bool) -> Figures:
    """Bodies that are small on the wire and huge when unpacked, over each way in, while a good sender sends."""
    line = world.line()
    clients = world.clients(line)
    times = 20 if long else 1
    big = 2**30
    # Independent blocks, so that one need be packed only twice: with gzip's head before it, and without.
    deflate = zlib.compressobj(9, wbits=31)
    block = [deflate.compress(bytes(2**24)) + deflate.flush(zlib.Z_FULL_FLUSH) for _ in range(2)]
    zipped = block[0] + block[1] * (big // 2**24 - 1)
    codec = pa.Codec("zstd")
    zstd = codec.compress(bytes(big >> 2), asbytes=True)
    proto = "application/x-protobuf"
    refused = 0
    channel = grpc.insecure_channel(
        line.grpc, options=[("grpc.max_send_message_length", -1)], compression=grpc.Compression.Gzip
    )
    for _ in range(times):
        flights = [clients.offer(batch) for batch in world.generator.batches(10)]
        for coding, body in (("gzip", zipped), ("zstd", zstd)):
            reply = clients.post(body, {"content-type": proto, "content-encoding": coding})
            assert reply.code in ("HTTP 413", "lost"), f"a bomb of {coding} was answered {reply}"
            refused += 1
        with pytest.raises(grpc.RpcError) as answer:
            channel.unary_unary(METHOD)(bytes(big >> 2), timeout=60)
        assert answer.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, answer.value
        refused += 1
        assert all(flight.result() for flight in flights)
    channel.close()
    figures = world.finish("gzip and zstd bombs, 1 GiB", times * 3, world.landed())
    figures.refused = refused
    figures.problems += bounded(figures)
    return figures


def slow_clients(world: World, long: bool) -> Figures:
    """2,000 connections that send half of something and then nothing, and good clients between them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, max(soft, 6000))
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    line = world.line()
    clients = world.clients(line)
    clients.all(world.generator.batches(3))
    before = line.memory()
    count = min(2000, wanted // 3)
    http_head = b"POST /v1/traces HTTP/1.1\r\nHost: tollspan\r\nContent-Type: application/x-protobuf\r\n"
    starts = [
        (line.http, http_head),
        (line.http, http_head + b"Content-Length: 5000\r\n\r\n" + b"x" * 100),
        (line.grpc, _PREFACE),
        (line.grpc, _PREFACE + _stalled_call(line.grpc)),
    ]
    held = []
    try:
        for number in range(count):
            address, sent = starts[number % len(starts)]
            host, port = address.split(":")
            connection = socket.create_connection((host, int(port)), timeout=20)
            connection.sendall(sent)
            held.append(connection)
        began = time.monotonic()
        clients.all(world.generator.batches(300 if long else 30))
        took = time.monotonic() - began
        if long:
            # As long as a stalled request may last; good ones go on.
            while time.monotonic() - began < 90:
                clients.all(world.generator.batches(10))
                time.sleep(0.5)
        peak = line.memory()
    finally:
        for connection in held:
            connection.close()
    clients.all(world.generator.batches(3))
    figures = world.finish(f"{count:,} slow connections", count, world.landed())
    figures.problems += bounded(figures)
    figures.note = f"{peak - before:.0f} MiB for them; good requests took {took:.1f} s together"
    return figures


_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a connection of HTTP/2 begins: the magic words and empty SETTINGS."""


def _stalled_call(authority: str) -> bytes:
    """The HEADERS of a gRPC call whose message never comes, every header written out."""
    headers = {
        ":method": "POST", ":scheme": "http", ":path": METHOD, ":authority": authority,
        "te": "trailers", "content-type": "application/grpc",
    }  # fmt: skip
    block = b"".join(
        b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in headers.items()
    )
    end_headers = 4
    return len(block).to_bytes(3, "big") + bytes([1, end_headers]) + (1).to_bytes(4, "big") + block


def bounded(figures: Figures) -> list[str]:
    """A problem where the service took more memory than it may."""
    return [f"{figures.peak_mib:,.0f} MiB resident"] if figures.peak_mib > BOUND_MIB else []


ALL: Final = [hostile_spans, bombs, slow_clients]
