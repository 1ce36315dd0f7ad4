"""Kernels of sampling, compiled by numba: what is done with every span between its charge and its decision.

Each does what a function of NumPy beside its caller does, with the same answer, in one pass. `faster` compiles them,
after the decoder, in processes that have one; until then and everywhere else NumPy does the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tollspan.processor.decode.walk import _brief

_EMPTY = -1


@_brief
def find(keys: Any, table: Any, known: Any, out: Any) -> None:
    """Slots of keys, see `open_traces.KeyIndex.find`.

    Args:
        keys: uint64, length n.
        table: int32, a power of two long: slots, below zero where there is none.
        known: uint64, key of each slot.
        out: int64, length n, is written: -1 where there is none.
    """
    mask = np.int64(table.size - 1)
    for row in range(keys.size):
        key = keys[row]
        at = np.int64(key & np.uint64(mask))
        slot = np.int64(-1)
        for step in range(1, table.size + 1):
            here = table[at]
            if here == _EMPTY:
                break
            if here >= 0 and known[here] == key:
                slot = np.int64(here)
                break
            at = (at + step) & mask
        out[row] = slot


@_brief
def put(slots: Any, table: Any, known: Any, places: Any) -> Any:
    """Put slots into a table that has room for them; how many places were never used before.

    Args:
        slots: int32, of keys that are not in it.
        table, known: as for `find`.
        places: int32, place of each slot in the table, is written.
    """
    mask = np.int64(table.size - 1)
    used = np.int64(0)
    for number in range(slots.size):
        slot = slots[number]
        at = np.int64(known[slot] & np.uint64(mask))
        step = 0
        while table[at] >= 0:
            step += 1
            at = (at + step) & mask
        if table[at] == _EMPTY:
            used += 1
        table[at] = slot
        places[slot] = at
    return used


@_brief
def runs(trace: Any, random: Any, root: Any, heads: Any, lengths: Any, highest: Any, rooted: Any, table: Any) -> Any:
    """Neighbouring rows of one trace; how many such runs there are, -1 where a trace has several.

    Args:
        trace, random: uint64, length n; root: bool of n.
        heads, lengths: int64, room for n, are written: first row and length of each run.
        highest: uint64, rooted: bool; room for n, are written: the maximum of ``random`` and whether any row is a root.
        table: int32 of zeros, a power of two and more than n of them.
    """
    count = -1
    mask = np.int64(table.size - 1)
    for row in range(trace.size):
        if row == 0 or trace[row] != trace[row - 1]:
            count += 1
            heads[count], lengths[count] = row, 0
            highest[count], rooted[count] = random[row], False
            at = np.int64(trace[row] & np.uint64(mask))
            while table[at] != 0:
                if trace[heads[table[at] - 1]] == trace[row]:
                    return -1
                at = (at + 1) & mask
            table[at] = count + 1
        lengths[count] += 1
        highest[count] = max(highest[count], random[row])
        if root[row]:
            rooted[count] = True
    return count + 1


@_brief
def arrive(
    slots: Any,
    new: Any,
    counts: Any,
    highest: Any,
    rooted: Any,
    times: Any,
    last: Any,
    random: Any,
    waiting: Any,
    flags: Any,
    due: Any,
    out: Any,
) -> None:
    """Put down that spans came, see `sampler.TailSampler.offer`.

    Args:
        slots: int32 of t, distinct; new: bool of t, whether they were opened for these spans.
        counts, highest, rooted: int64, uint64 and bool of t, see `runs`.
        times: int64: the tick now, ticks that a trace waits from its root and from its first span on, most spans of a
            trace that may wait, and the flags of traces whose root has come, that are known and that were decided in
            steps.
        last, random, waiting, flags: columns of `open_traces.OpenTraces.slots`, are written; due: one, is read.
        out: int32 of t, is written: when each is due.
    """
    now, wait, timeout, most = times[0], times[1], times[2], times[3]
    is_rooted, is_known, is_stepped = times[4], times[5], times[6]
    for number in range(slots.size):
        slot = slots[number]
        last[slot] = now
        random[slot] = max(random[slot], highest[number])
        held = np.int64(waiting[slot]) + counts[number]
        waiting[slot] = held
        flag = np.int64(flags[slot])
        at = now + timeout if new[number] else np.int64(due[slot])
        if (rooted[number] and flag & is_rooted == 0) or flag & is_stepped != 0:
            at = min(at, now + wait)
        if rooted[number]:
            flag |= is_rooted
            flags[slot] = flag
        if flag & (is_known | is_stepped) == is_known or held >= most:
            at = min(at, now)
        out[number] = at


@_brief
def totals(
    rows: Any,
    group: Any,
    start: Any,
    end: Any,
    error: Any,
    root: Any,
    slim: Any,
    again: Any,
    sizes: Any,
    first: Any,
    last: Any,
    sums: Any,
    failed: Any,
    rooted: Any,
) -> Any:
    """Add spans of one batch to what their traces come to; how many of them are roots.

    Args:
        rows, group: int64, length m: rows of the batch, and number of each one's trace.
        start, end, error, root, slim: of the batch, as in `summarize.Facts`; slim of no length: none is.
        again: bool of m, came before; of no length: none did.
        sizes: uint32, of the batch.
        first, last: int64 by trace, of all spans.
        sums: int64 (3, traces): spans, bytes received and bodies, of what did not come before.
        failed: uint8 by trace.
        rooted: int64, room for m, is written: positions in ``rows`` of the roots.
    """
    roots = 0
    for number in range(rows.size):
        row, trace = rows[number], group[number]
        first[trace] = min(first[trace], start[row])
        last[trace] = max(last[trace], end[row])
        if error[row]:
            failed[trace] = 1
        if root[row] >= 0:
            rooted[roots] = number
            roots += 1
        if again.size and again[number]:
            continue
        sums[0, trace] += 1
        sums[1, trace] += np.int64(sizes[row])
        if not slim.size or not slim[row]:
            sums[2, trace] += 1
    return roots


@_brief
def tally(
    rows: Any, trace: Any, group: Any, sizes: Any, code: Any, share: Any, groups: int, sums: Any, wanted: Any
) -> None:
    """Sums of decided spans by rule and group, see `telemetry_cost.Shares.decided`.

    Args:
        rows, trace: int64 of m: rows of the batch, and number of each one's trace.
        group, sizes: int32 and uint32 of the batch; groups: how many there are.
        code, share: int64 and float64 by trace: number of its rule, and how much of it was wanted.
        sums: int64 (2, rules × groups): spans and bytes; wanted: float64 of as many: bytes.
    """
    for number in range(rows.size):
        row, of = rows[number], trace[number]
        cell = code[of] * groups + group[row]
        sums[0, cell] += 1
        sums[1, cell] += np.int64(sizes[row])
        wanted[cell] += np.float64(sizes[row]) * share[of]


@_brief
def shares(
    starts: Any,
    limits: Any,
    now: int,
    tenant: Any,
    tenants: Any,
    service: Any,
    services: Any,
    sizes: Any,
    received: int,
    whole: int,
    groups: Any,
    sums: Any,
    group: Any,
    share: Any,
) -> Any:
    """Groups of spans by minute, tenant and service, and the bytes of each span; see `telemetry_cost.arrived`.

    Args:
        starts: uint64 of n, ns. limits: int64: minutes up to which they count as they are, and by the hour; the last.
        now: minute of the receipt.
        tenant, service: int32 of n; tenants, services: int64, what each of these numbers stands for.
        sizes: int64 of n; received: bytes that they share; whole: their sum.
        groups: int64 (3, room), is written: minute, tenant and service.
        sums: int64 (2, room), zeros: spans and bytes.
        group: int32, share: uint32; of n, are written.

    Returns:
        How many groups; -1: more than there is room for.
    """
    count, last = 0, -1
    behind, before = np.int64(0), np.int64(0)
    near, far, latest = limits[0], limits[1], limits[2]
    for row in range(starts.size):
        ns = min(starts[row], np.uint64(latest) * np.uint64(60_000_000_000))
        minute = np.int64(ns // np.uint64(60_000_000_000))
        away = abs(minute - now)
        if away > far:
            minute = minute // 1440 * 1440
        elif away > near:
            minute = minute // 60 * 60
        of_tenant, of_service = tenants[tenant[row]], services[service[row]]
        if last < 0 or groups[0, last] != minute or groups[1, last] != of_tenant or groups[2, last] != of_service:
            last = 0
            while last < count and (
                groups[0, last] != minute or groups[1, last] != of_tenant or groups[2, last] != of_service
            ):
                last += 1
            if last == count:
                if count == groups.shape[1]:
                    return -1
                groups[0, count], groups[1, count], groups[2, count] = minute, of_tenant, of_service
                count += 1
        behind += sizes[row]
        end = behind * received // whole
        group[row] = last
        share[row] = end - before
        sums[0, last] += 1
        sums[1, last] += end - before
        before = end
    return count
