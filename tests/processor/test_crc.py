"""CRC-32 is zlib's, whoever computes it."""

from __future__ import annotations

import sys
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollspan.processor import crc


@given(st.binary(max_size=20_000), st.integers(0, 2**32 - 1), st.integers(0, 70))
def test_any_bytes_from_any_value_and_at_any_offset(data: bytes, value: int, skipped: int) -> None:
    assert crc.crc32(data) == zlib.crc32(data)
    view = memoryview(data)[skipped:]
    assert crc.crc32(view, value) == zlib.crc32(view, value)


def test_more_than_a_request() -> None:
    data = bytes(range(256)) * 70_000
    assert crc.crc32(data) == zlib.crc32(data)


def test_where_isal_is_missing_zlib_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    assert crc._best() is zlib.crc32
