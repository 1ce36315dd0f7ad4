"""Metrics: what is counted, what is the case, and how long things take, for Prometheus and for OTLP.

In: a `Counters`. Out: `families`, each with its help, labels and points; `exposition`, the text that Prometheus scrapes
(version 0.0.4); and `table`, the list for documents. A counter ``receive.accepted`` is
``tollspan_receive_accepted_total``; one name with several reasons is one metric with a label. `DESCRIBED` says what
each means; a name that it lacks appears all the same, without help. Names do not change between releases: dashboards
and alerts hang on them.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from tollspan.processor.counters import Counters, Observed

_UNFIT: Final = re.compile(r"[^a-zA-Z0-9_]")
PREFIX: Final = "tollspan_"


class Described(NamedTuple):
    """What a metric means.

    Attributes:
        help: one sentence.
        label: what the last part of its names is, where it has several: ``receive.refused.<reason>``.
        unit: as OpenTelemetry writes units.
    """

    help: str
    label: str = ""
    unit: str = "1"


COUNTED: Final[Mapping[str, Described]] = {
    "receive.calls": Described(
        "Calls over gRPC begun; more than requests where one was too large or broken off", "", "{call}"
    ),
    "receive.http.calls": Described("Calls over HTTP begun", "", "{call}"),
    "receive.requests": Described("Requests whose body arrived", "", "{request}"),
    "receive.accepted": Described("Requests acknowledged: durable in the journal", "", "{request}"),
    "receive.spans": Described("Spans acknowledged", "", "{span}"),
    "receive.bytes": Described("Bytes acknowledged, decompressed", "", "By"),
    "receive.empty": Described("Requests without spans", "", "{request}"),
    "receive.partial": Described("Requests of which some spans were refused (partial success)", "", "{request}"),
    "receive.refused": Described("Requests refused, by reason", "reason", "{request}"),
    "receive.rejected": Described("Spans refused within requests that were taken, by reason", "reason", "{span}"),
    "receive.rejected_not_kept": Described(
        "Spans refused within a request that quarantine had no room for", "", "{span}"
    ),
    "receive.broken": Described(
        "Calls over gRPC without a whole body: too large, broken off, or given up", "", "{call}"
    ),
    "receive.stalled": Described("Calls over gRPC given up because their body did not come"),
    "receive.logs": Described("Requests with logs", "", "{request}"),
    "receive.metrics": Described("Requests with metrics", "", "{request}"),
    "senders.reloaded": Described("Times the file of senders was taken anew"),
    "senders.reload_failed": Described("Times the file of senders was broken and the last good one kept"),
    "readers.reloaded": Described("Times the file of readers of the SQL port was taken anew"),
    "readers.reload_failed": Described("Times the file of readers was broken and the last good one kept"),
    "tls.reloads": Described("Times a certificate was taken anew"),
    "tls.reload_errors": Described("Times certificate files could not be used and the last good ones were kept"),
    "prices.reloaded": Described("Times the price book was taken anew"),
    "prices.reload_failed": Described("Times the price book was broken and the last good one kept"),
    "config.reloaded": Described("Times the configuration was read again"),
    "config.reload_failed": Described("Times the configuration was broken and the one in use kept"),
    "page.questions": Described("Questions that the page asked of the store"),
    "page.reused": Described("Requests of the page that an answer or a question under way served"),
    "page.refused": Described("Requests of the page refused because too much was asked at once"),
    "page.given_up": Described("Questions of the page given up because nobody waited for the answer"),
    "page.failed": Described("Questions of the page that the store could not answer"),
    "journal.appended": Described("Requests made durable", "", "{request}"),
    "journal.appended_bytes": Described("Bytes made durable", "", "By"),
    "journal.syncs": Described("Syncs of the journal to disk"),
    "journal.refused": Described("Requests that the journal refused", "", "{request}"),
    "journal.failures": Described("Writes or syncs of the journal that failed"),
    "journal.replayed": Described("Requests of an earlier process that were processed again", "", "{request}"),
    "journal.torn_bytes": Described("Bytes of unacknowledged writes cut off at the start", "", "By"),
    "journal.corrupt_records": Described("Places in the journal that were damaged"),
    "journal.corrupt_bytes": Described("Damaged bytes in the journal", "", "By"),
    "journal.damaged_files": Described("Journal files that cannot be read"),
    "journal.lost_batches": Described("Batches whose segment is gone from disk"),
    "decoded.spans": Described("Spans decoded", "", "{span}"),
    "decoded.bytes": Described("Bytes of requests whose spans are priced", "", "By"),
    "decoded.malformed": Described("Requests in the journal that cannot be decoded", "", "{request}"),
    "rejected": Described("Spans that cannot be used, found after the acknowledgement, by reason", "reason", "{span}"),
    "recent.duplicates": Described("Spans that came again with the same content; counted once", "", "{span}"),
    "recent.conflicts": Described("Spans that came again with other content; the first stays", "", "{span}"),
    "recent.recalled": Described("Spans taken up from the log of recent spans at the start", "", "{span}"),
    "recent.log_failures": Described("Writes of the log of recent spans that failed"),
    "recent.log_damaged": Described("Damaged places in the log of recent spans"),
    "dialects.unknown.spans": Described(
        "Spans that look like model calls of a dialect that is not known", "", "{span}"
    ),
    "dialects.unknown.names": Described(
        "Attributes of unknown dialects; `tollspan query unknown-attributes` lists them"
    ),
    "dialects.unknown.overflow": Described("Attributes of unknown dialects beyond those that are remembered"),
    "dialects.unknown.faults": Described("Faults of our own while unknown dialects were looked for"),
    "assemble.corrections_refused": Described("Corrections that the store refused", "", "{row}"),
    "accounts.refused": Described("Inserts of the accounts of batches that the store refused"),
    "accounts.telemetry_refused": Described("Inserts of telemetry's own cost that the store refused; tried again"),
    "accounts.telemetry_given_up": Described("Parts of batches whose telemetry's cost was given up"),
    "accounts.given_up": Described("Accounts of batches given up; reconcile cannot prove these"),
    "ledger.rows": Described("Ledger rows: billable spans", "", "{row}"),
    "ledger.corrections": Described("Ledger rows written again because a child came late", "", "{row}"),
    "priced": Described("Ledger rows by cost status; unpriced and partial ones leave money out", "status", "{row}"),
    "sampled.traces": Described("Traces decided", "", "{trace}"),
    "sampled.kept_traces": Described("Traces whose spans are kept", "", "{trace}"),
    "sampled.spans": Described("Spans decided", "", "{span}"),
    "sampled.kept_spans": Described("Spans kept", "", "{span}"),
    "sampled.rule": Described("Traces kept, by the rule that keeps them", "rule", "{trace}"),
    "sampled.dropped_by": Described("Traces dropped, by the rule that decided; 'none' matched", "rule", "{trace}"),
    "sampling_file.reloaded": Described("Times the sampling file was taken anew"),
    "sampling_file.reload_failed": Described("Times the sampling file was broken and the last good one kept"),
    "sampling.levels.renewed": Described("Times the figures that sampling rules compare with were renewed"),
    "sampling.levels.failures": Described("Times they could not be; the last ones stay in force"),
    "sampling.budget.steered": Described("Times the rates that hold a budget were computed"),
    "sampling.budget.unmet": Described("Times a budget was found not to be held; the log says why"),
    "sampling.steps": Described("Decisions on traces whose root had not come and that may go on", "", "{trace}"),
    "sampling.steps_forgotten": Described("Such traces of which too many were known; the oldest", "", "{trace}"),
    "sampling.faults": Described("Times that the sampling rules failed; what they touched is kept"),
    "sampled.slim_spans": Described("Spans of traces not sampled at their head, which have no body", "", "{span}"),
    "sampling.inconsistent_th": Described("Incoming thresholds that the trace's randomness belies", "", "{span}"),
    "sampling.content_shed": Described("Spans whose content was given up because memory was short", "", "{span}"),
    "sampling.spilled": Described("Batches of waiting spans put on disk"),
    "sampling.spilled_bytes": Described("Bytes of waiting spans put on disk", "", "By"),
    "sampling.spill_failures": Described("Batches of waiting spans that could not be put on disk"),
    "sampling.memory_recalled": Described("Decisions of earlier processes taken up at the start", "", "{trace}"),
    "sampling.memory_failures": Described("Writes of remembered decisions that failed"),
    "sampling.memory_damaged": Described("Damaged places in remembered decisions"),
    "write.rows": Described("Rows in the store, by table", "table", "{row}"),
    "write.inserts": Described("Inserts that the store took"),
    "write.retries": Described("Inserts tried again because the store was away"),
    "pipeline.faults": Described("Faults of the processor itself; each has a traceback in the log"),
    "pipeline.set_aside": Described("Spans that cannot be processed, put into quarantine", "", "{span}"),
    "pipeline.taken_back": Described("Entries of the quarantine that the start tried again"),
    "pipeline.held": Described("Waits for a store that refuses also what it took before"),
    "quarantine.entries": Described("Entries put into quarantine"),
    "quarantine.spans": Described("Spans put into quarantine", "", "{span}"),
    "quarantine.reason": Described("Entries put into quarantine, by reason", "reason"),
    "quarantine.full": Described("Entries for which the quarantine had no room; acknowledged ones stay in the journal"),
    "quarantine.failures": Described("Entries of the quarantine that the disk refused"),
    "inbox.taken": Described("Requests of other processes, or replayed ones, taken into the journal", "", "{request}"),
    "inbox.bytes": Described("Bytes of those", "", "By"),
    "inbox.deferred": Described("Looks into the inbox that found no room in the journal"),
    "inbox.damaged": Described("Files of the inbox that cannot be used, kept under another name"),
    "inbox.faults": Described("Faults of our own while the inbox was looked at"),
    "pipeline.left_in_journal": Described("Batches that a shutdown left in the journal for the next start"),
    "pipeline.unwritten_rounds": Described(
        "Rounds of kept spans that the store refused or that could not be read again; they stay in the journal"
    ),
    "forward.spooled_spans": Described("Kept spans taken to be sent on", "", "{span}"),
    "forward.spans": Described("Kept spans that forwarding endpoints took", "", "{span}"),
    "forward.bytes": Described("Bytes that forwarding endpoints took, uncompressed", "", "By"),
    "forward.requests": Described("Attempts to send a request on, by signal", "signal", "{request}"),
    "forward.retries": Described("Attempts that will be made again, by the endpoint's answer", "code"),
    "forward.refused_requests": Described("Requests that an endpoint refused for good", "code", "{request}"),
    "forward.refused_spans": Described("Spans that an endpoint refused for good", "code", "{span}"),
    "forward.rejected": Described("Items that an endpoint rejected by partial success", "signal", "{item}"),
    "forward.dropped_spans": Described("Kept spans not sent on; they are in the store", "reason", "{span}"),
    "forward.passed": Described("Requests of logs and metrics acknowledged, by signal", "signal", "{request}"),
    "forward.passed_refused": Described("Requests of logs and metrics refused for want of room", "", "{request}"),
    "forward.faults": Described("Faults of our own while sending on; what they touched stays"),
    "metrics.unread_gauges": Described("Gauges that could not be read"),
    "telemetry.exports": Described("Exports of these metrics over OTLP"),
    "telemetry.failures": Described("Exports of these metrics that failed"),
}
"""Counter → what it counts; a name with a label stands for all that begin with it."""

GAUGES: Final[Mapping[str, Described]] = {
    "ready": Described("1 when spans are taken (what /readyz says)"),
    "store.up": Described("1 when the store answered the last insert"),
    "pipeline.up": Described("1 when the worker runs"),
    "decode.fused": Described("1 when spans are decoded by the compiled decoder, not by ptars"),
    "prices.reload_error": Described("1 while the price book's file is broken and the last good one in use"),
    "sampling_file.reload_error": Described("1 while the sampling file is broken and the last good one in use"),
    "sampling.budget.trouble": Described("1 while a budget is not held"),
    "sampling.levels.stale": Described("1 while the figures of sampling rules are not renewed"),
    "journal.disk_bytes": Described("Bytes of the journal on disk", "", "By"),
    "journal.spare_bytes": Described("Bytes of files that the journal keeps to write its next segments into", "", "By"),
    "journal.cap_bytes": Described("Bytes that the journal may grow to", "", "By"),
    "inbox.waiting_bytes": Described("Bytes in the inbox that are not yet in the journal", "", "By"),
    "quarantine.bytes": Described("Bytes in quarantine", "", "By"),
    "journal.free_bytes": Described("Free bytes of the disk that the journal is on", "", "By"),
    "lag.bytes": Described("Bytes acknowledged and not yet handed to the pipeline", "", "By"),
    "lag.spans": Described("Spans acknowledged and not yet priced, estimated from their bytes", "", "{span}"),
    "lag.seconds": Described(
        "Age of the oldest batch not all written; spans wait for their sampling decision", "", "s"
    ),
    "sampling.open_traces": Described("Traces that wait for a decision, or may go on after one", "", "{trace}"),
    "sampling.waiting_spans": Described("Spans that wait for the decision on their trace", "", "{span}"),
    "sampling.waiting_bytes": Described("Memory of the spans that wait", "", "By"),
    "forward.up": Described("1 while a forwarding endpoint takes what is sent", "endpoint"),
    "forward.waiting_bytes": Described("Bytes on disk that wait for a forwarding endpoint", "endpoint", "By"),
    "forward.waiting_seconds": Described("Age of the oldest request that waits for an endpoint", "endpoint", "s"),
    "sampling.forced": Described("Traces decided early because memory was short", "", "{trace}"),
}

TIMED: Final[Mapping[str, Described]] = {
    "receive.seconds": Described("From a request's body to its answer", "", "s"),
    "pipeline.stage.seconds": Described("Time of a batch in each stage of the pipeline", "stage", "s"),
}

DESCRIBED: Final[Mapping[str, Described]] = {**COUNTED, **GAUGES, **TIMED}


@dataclass(frozen=True, slots=True)
class Family:
    """A metric with its points.

    Attributes:
        name: dotted, without what Prometheus adds.
        kind: ``counter``, ``gauge`` or ``histogram``.
        described: what it means.
        points: label's value ('' where there is none) → number, or what a histogram observed.
        bounds: of a histogram's buckets.
    """

    name: str
    kind: str
    described: Described
    points: dict[str, Any] = field(default_factory=dict)
    bounds: tuple[float, ...] = ()

    @property
    def metric(self) -> str:
        """Its name in Prometheus."""
        suffix = "_total" if self.kind == "counter" else ""
        return f"{PREFIX}{_UNFIT.sub('_', self.name)}{suffix}"


def families(counters: Counters) -> list[Family]:
    """Everything there is to tell now, sorted by name."""
    found: dict[str, Family] = {}
    for name, value in counters.snapshot().items():
        base, part = _split(name)
        _family(found, base, "counter").points[part] = value
    for name, number in counters.gauges().items():
        base, part = _split(name)
        _family(found, base, "gauge").points[part] = number
    for (name, part), histogram in counters.histograms().items():
        seen = _family(found, name, "histogram", histogram.bounds)
        seen.points[part] = histogram.observed()
    return [found[name] for name in sorted(found)]


def _split(name: str) -> tuple[str, str]:
    """A counter's metric, and the value of its label: the longest described beginning that has a label."""
    if name in DESCRIBED:
        return name, ""
    base = name
    while "." in base:
        base = base.rpartition(".")[0]
        if base in DESCRIBED and DESCRIBED[base].label:
            return base, name[len(base) + 1 :]
    return name, ""


def _family(found: dict[str, Family], name: str, kind: str, bounds: tuple[float, ...] = ()) -> Family:
    if name not in found:
        described = DESCRIBED.get(name, Described(f"{name} (not described)"))
        found[name] = Family(name, kind, described, bounds=bounds)
    return found[name]


def exposition(counters: Counters) -> str:
    """The text of a scrape: our families, and what is known of the process under Prometheus' own names for it."""
    lines: list[str] = []
    for each in families(counters):
        lines += [f"# HELP {each.metric} {_escaped(each.described.help)}.", f"# TYPE {each.metric} {each.kind}"]
        label = each.described.label
        for part, value in each.points.items():
            said = {label: part} if label else {}
            if isinstance(value, Observed):
                running = 0
                for bound, count in zip((*each.bounds, "+Inf"), value.counts, strict=True):
                    running += count
                    lines.append(_sample(f"{each.metric}_bucket", {**said, "le": str(bound)}, running))
                lines.append(_sample(f"{each.metric}_sum", said, value.total))
                lines.append(_sample(f"{each.metric}_count", said, running))
            else:
                lines.append(_sample(each.metric, said, value))
    for name, (kind, help_, number) in process().items():
        lines += [f"# HELP {name} {help_}.", f"# TYPE {name} {kind}", _sample(name, {}, number)]
    return "\n".join(lines) + "\n"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    said = ",".join(f'{_UNFIT.sub("_", key)}="{_escaped(text, quotes=True)}"' for key, text in labels.items())
    return f"{name}{{{said}}} {value}" if said else f"{name} {value}"


def _escaped(text: str, quotes: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def process() -> dict[str, tuple[str, str, float]]:
    """Name → (kind, help, value) of the process; on systems without ``/proc`` less of it."""
    found: dict[str, tuple[str, str, float]] = {
        "process_cpu_seconds_total": ("counter", "CPU time of the process", round(time.process_time(), 3)),
        "process_threads": ("gauge", "Threads of the process that Python knows", threading.active_count()),
    }
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = Path("/proc/self/statm").read_text().split()
        size = os.sysconf("SC_PAGE_SIZE")
        found["process_resident_memory_bytes"] = ("gauge", "Resident memory", int(pages[1]) * size)
        found["process_virtual_memory_bytes"] = ("gauge", "Virtual memory", int(pages[0]) * size)
        found["process_open_fds"] = ("gauge", "Open file descriptors", len(os.listdir("/proc/self/fd")))
        # Everything after the name in brackets, which may hold spaces; field 22 is the start in ticks since boot.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        since_boot = ticks / os.sysconf("SC_CLK_TCK")
        born = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
        found["process_start_time_seconds"] = ("gauge", "Start of the process, seconds since 1970", round(born, 2))
    return found


def table() -> list[dict[str, object]]:
    """A row for each described metric, for documents."""
    rows: list[dict[str, object]] = []
    for kind, described in (("counter", COUNTED), ("gauge", GAUGES), ("histogram", TIMED)):
        for name, each in described.items():
            rows.append(
                {
                    "metric": Family(name, kind, each).metric,
                    "kind": kind,
                    "label": each.label,
                    "unit": each.unit,
                    "what": each.help,
                }
            )
    rows += [
        {"metric": name, "kind": kind, "label": "", "unit": "", "what": help_}
        for name, (kind, help_, _) in process().items()
    ]
    return rows
