"""What a model consists of beside its own file, read from the ONNX file itself.

In: the bytes of a model, mapped and not read, or those that the program handed over. Out: its format, and the files
that it names: external data of initializers, binaries of `EPContext` nodes. Where it stands: below `loads.py`, which
asks after a load that succeeded, when what is looked at is in the page cache.

Only the outline is walked, tags and lengths of ONNX's protobuf, and never the weights between them. Field numbers are
of onnx.proto: ``ModelProto.graph`` = 7; ``GraphProto.node`` = 1, ``.initializer`` = 5; ``TensorProto.external_data`` =
13; ``NodeProto.op_type`` = 4, ``.attribute`` = 5; ``AttributeProto.name`` = 1, ``.i`` = 3, ``.s`` = 4. Initializers of
subgraphs and tensors within attributes are not looked at.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

ONNX: Final = "onnx"
ORT: Final = "ort"
EP_CONTEXT: Final = "ep_context"

_ORT_IDENTIFIER: Final = b"ORTM"
"""File identifier of ONNX Runtime's own format, a flatbuffer: bytes 4 to 8."""
_EP_CONTEXT_OP: Final = b"EPContext"

Buffer = bytes | mmap.mmap


@dataclass(frozen=True, slots=True)
class Outline:
    """What a model says of itself.

    Attributes:
        format: ``onnx``, ``ort`` or ``ep_context``.
        parts: file, as the model names it → bytes of it that the model uses; None: all of it.
    """

    format: str
    parts: dict[str, int | None]


def outline(buffer: Buffer) -> Outline:
    """The outline of a model.

    Raises:
        ValueError: it is none, by the form of its protobuf.
    """
    if buffer[4:8] == _ORT_IDENTIFIER:
        return Outline(ORT, {})
    tensors: dict[str, set[tuple[int, int | None]]] = {}
    parts: dict[str, int | None] = {}
    compiled = False
    for graph in _inside(buffer, 0, len(buffer), 7):
        for field, start, end in _fields(buffer, *graph):
            if field == 5:
                if external := _external(buffer, start, end):
                    location, offset, length = external
                    tensors.setdefault(location, set()).add((offset, length))
            elif field == 1 and buffer.find(_EP_CONTEXT_OP, start, end) >= 0 and _op_type(buffer, start, end):
                compiled = True
                if binary := _context_binary(buffer, start, end):
                    parts[binary] = None
    for location, pieces in tensors.items():
        lengths = [length for _, length in pieces]  # a piece that two initializers share is one
        parts[location] = None if None in lengths else sum(length for length in lengths if length is not None)
    return Outline(EP_CONTEXT if compiled else ONNX, parts)


def outline_of_file(path: str | bytes | os.PathLike[str]) -> Outline:
    """`outline` of a file, which is mapped for as long as it takes."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        return outline(mapped)


def _external(buffer: Buffer, start: int, end: int) -> tuple[str, int, int | None] | None:
    """(location, offset, length) of a tensor whose data lie elsewhere."""
    said: dict[str, str] = {}
    for entry in _inside(buffer, start, end, 13):
        pair = {field: buffer[s:e].decode() for field, s, e in _fields(buffer, *entry)}
        said[pair.get(1, "")] = pair.get(2, "")
    if "location" not in said:
        return None
    length = said.get("length")
    return said["location"], int(said.get("offset") or 0), int(length) if length else None


def _op_type(buffer: Buffer, start: int, end: int) -> bool:
    return any(buffer[s:e] == _EP_CONTEXT_OP for s, e in _inside(buffer, start, end, 4))


def _context_binary(buffer: Buffer, start: int, end: int) -> str | None:
    """File of an `EPContext` node that does not carry its binary itself (``embed_mode`` = 0)."""
    attributes: dict[bytes, dict[int, tuple[int, int]]] = {}
    for attribute in _inside(buffer, start, end, 5):
        fields = {field: (s, e) for field, s, e in _fields(buffer, *attribute)}
        if 1 in fields:
            attributes[buffer[slice(*fields[1])]] = fields
    embedded = attributes.get(b"embed_mode", {}).get(3)
    if embedded is None or _varint(buffer, embedded[0])[0] != 0:  # 1 is what it is where it does not say
        return None
    name = attributes.get(b"ep_cache_context", {}).get(4)
    return buffer[slice(*name)].decode() if name else None


def _inside(buffer: Buffer, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    for field, first, last in _fields(buffer, start, end):
        if field == wanted:
            yield first, last


def _fields(buffer: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, start, end) of each field of a message; start and end of its value."""
    while position < end:
        tag, position = _varint(buffer, position)
        kind = tag & 7
        start = position
        if kind == 2:
            length, start = _varint(buffer, position)
            position = start + length
        elif kind == 0:
            position = _varint(buffer, position)[1]
        elif kind == 1:
            position += 8
        elif kind == 5:
            position += 4
        else:
            raise ValueError(f"no protobuf: wire type {kind}")
        if position > end:
            raise ValueError("no protobuf: a field is longer than its message")
        yield tag >> 3, start, position


def _varint(buffer: Buffer, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        try:
            byte = buffer[position]
        except IndexError:
            raise ValueError("no protobuf: it ends within a number") from None
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
        if shift > 63:
            raise ValueError("no protobuf: a number of more than 64 bits")
