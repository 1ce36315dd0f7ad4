"""The kernels of sampling (`compiled`), once they are compiled in this process."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from tollspan.processor.decode import fused

_USED: Final = ("find", "put", "runs", "arrive", "totals", "tally", "shares")

_compiled: Any = None


def kernels() -> Any:
    """The compiled module, None while there is none."""
    return None if fused.kernels() is None else _compiled


def read_only(array: Any, kind: Any) -> Any:
    """An array as the kernels take what they only read: of a type, in one piece, not to be written."""
    view = np.ascontiguousarray(array, kind).view()
    view.flags.writeable = False
    return view


def _prepare() -> None:
    """Compile by using."""
    global _compiled
    from tollspan.processor.sample import compiled

    def read(count: int, kind: Any = np.int64) -> Any:
        return read_only(np.zeros(count), kind)

    def ints(*shape: int, kind: Any = np.int64) -> Any:
        return np.zeros(shape, kind)

    # A key of 7 in slot 0 of a table, put in and found.
    known, table, found = np.full(2, 7, np.uint64), np.full(4, -1, np.int32), ints(1)
    used = compiled.put(ints(1, kind=np.int32), table, known, ints(2, kind=np.int32))
    compiled.find(read_only(known[:1], np.uint64), table, known, found)
    words, lengths = read(2, np.uint64), ints(2)
    of_runs = ints(2, kind=np.uint64), ints(2, kind=np.bool_), ints(8, kind=np.int32)
    count = compiled.runs(words, words, read(2, np.bool_), ints(2), lengths, *of_runs)
    slots = [ints(1, kind=kind) for kind in (np.int32, np.uint64, np.int32, np.uint8, np.int32, np.int32)]
    one_came = ints(1, kind=np.int32), np.ones(1, np.bool_), np.ones(1, np.int64), ints(1, kind=np.uint64)
    compiled.arrive(*one_came, np.ones(1, np.bool_), np.arange(1, 8), *slots)
    kinds = np.int64, np.int64, np.bool_, np.int32
    facts = [read(1, kind) for kind in kinds]
    nobody = read(0, np.bool_)
    rows, sums, failed, one = read(1), ints(3, 1), ints(1, kind=np.uint8), read_only(np.ones(1), np.uint32)
    roots = compiled.totals(rows, rows, *facts, nobody, nobody, one, ints(1), ints(1), sums, failed, ints(1))
    coded = read(1, np.int32), read(1)
    group, share = ints(1, kind=np.int32), ints(1, kind=np.uint32)
    starts, sizes, limits = read(1, np.uint64), read_only(np.ones(1), np.int64), ints(3)
    of_groups = ints(3, 1), ints(2, 1), group, share
    grouped = compiled.shares(starts, limits, 0, *coded, *coded, sizes, 9, 1, *of_groups)
    wanted = ints(1, kind=np.float64)
    compiled.tally(rows, rows, read(1, np.int32), one, rows, np.ones(1), 1, ints(2, 1), wanted)
    told = used, found[0], count, lengths[0], roots, *sums[:, 0], grouped, share[0], wanted[0], slots[2][0], slots[5][0]
    if told != (1, 0, 1, 2, 1, 1, 1, 1, 1, 9, 1, 1, 3):
        raise RuntimeError("the compiled kernels of sampling do not find what they are given")
    for name in _USED:
        getattr(compiled, name).disable_compile()
    _compiled = compiled


fused.also(_prepare)
