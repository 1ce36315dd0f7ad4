"""Tracestate: what other samplers said is honoured, what we decided is stamped, other vendors' members stay."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from tollspan.processor.tracestate import randomness, stamp, stamp_column

TRACE = np.array([[1, 0xAA00000000000007]], np.uint64)


@pytest.mark.parametrize(
    ("state", "random", "incoming"),
    [
        ("", 7, 0),
        (None, 7, 0),
        ("vendor=1", 7, 0),
        ("ot=th:8", 7, 0x80000000000000),
        ("ot=th:0", 7, 0),
        ("ot=rv:00000000000009", 9, 0),
        ("vendor=x,ot=th:c;rv:abcdefabcdef01", 0xABCDEFABCDEF01, 0xC0000000000000),
        ("ot=rv:abcdefabcdef01;th:c , other=y", 0xABCDEFABCDEF01, 0xC0000000000000),
        ("ot=rv:xyz;th:nothex", 7, 0),
        ("ot=rv:123", 7, 0),
        ("not=rv:00000000000009", 7, 0),
    ],
)
def test_reading(state: str | None, random: int, incoming: int) -> None:
    values, thresholds = randomness(pa.array([state], pa.string()), TRACE)
    assert (int(values[0]), int(thresholds[0])) == (random, incoming)


@pytest.mark.parametrize(
    ("state", "threshold", "stamped"),
    [
        ("", 2**55, "ot=th:8"),
        ("vendor=1", 0, "ot=th:0,vendor=1"),
        ("vendor=1,ot=rv:abcdefabcdef01;th:1", 2**55, "ot=th:8;rv:abcdefabcdef01,vendor=1"),
        ("ot=th:4", 0, "ot=th:0"),
    ],
)
def test_stamping(state: str, threshold: int, stamped: str) -> None:
    assert stamp(state, threshold) == stamped


def test_stamping_columns_is_stamping_each() -> None:
    states = ["", "a=1", "", "ot=rv:abcdefabcdef01", None]
    thresholds = [0, 2**55, 2**54, 2**55, 0]
    column = stamp_column(pa.array(states, pa.string()), np.array(thresholds, np.uint64))
    assert column.to_pylist() == [stamp(s or "", t) for s, t in zip(states, thresholds, strict=True)]
