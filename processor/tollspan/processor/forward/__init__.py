"""Forward: kept spans on to other OTLP endpoints, with what they cost; so that the processor can stand in the middle.

In: the kept rows of sampling decisions; logs and metrics as raw requests. Out: OTLP over gRPC or HTTP to one endpoint
or several, each of which gets everything. After `sample`, beside `write`.

    kept spans ─▶ encode ─▶ spool (a journal for each endpoint) ─▶ sender ─▶ endpoint
    logs, metrics, raw ─────┘ ─▶ ack

Promises
--------
* An endpoint never holds up pricing or acknowledgements. What waits for it is on disk, up to ``max_bytes``.
* Kept spans are in the spool before the batches that they came in are released, so they reach the endpoint at least
  once, whatever dies when. They come twice (same ids, same content but for a later price book's figures) where the
  processor was killed between a decision and the release of the batch, half a minute at most; where the endpoint took
  a request and its answer was lost; where a sender sent a span again and the processor did not remember the first; and
  where logs and metrics went into one endpoint's spool and not into another's.
* At the cap the newest kept spans are not sent on: what the spool has promised stays, and the beginning of an outage
  is what people look for. They are counted (``forward.dropped_spans.full``), told in the log and in `troubles`, and
  are still in the store's ``spans``. Logs and metrics are refused there, and not acknowledged: they are nowhere else.
* A span is sent on with the price of its arrival. A correction that comes later (a roll-up that is found when its child
  comes late, `tollspan reprice`) changes the ledger, and nothing that was sent.

Counters: ``forward.spans`` and ``forward.bytes`` taken, ``forward.spooled_spans``, ``forward.requests.<signal>``
attempts, ``forward.retries.<code>``, ``forward.refused_requests.<code>`` and ``forward.refused_spans.<code>`` for good,
``forward.rejected.<signal>`` by partial success, ``forward.dropped_spans.<full|disk|fault>``,
``forward.passed.<signal>`` logs and metrics acknowledged, ``forward.passed_refused``, ``forward.faults``. Gauges, by
endpoint: ``forward.up``, ``forward.waiting_bytes``, ``forward.waiting_seconds``.
"""
