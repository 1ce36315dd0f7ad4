"""Unknown dialects: attributes that look like token counts or names of models and stand in none of the tables.

In: a batch and its canonical columns. Out: how many spans of which instrumentation scope carry which of them, in the
table ``unknown_attributes`` (``tollspan query unknown-attributes``), in the counters ``dialects.unknown.*``, and each
name once in the log. Names only, never values. A library that nobody has taught us is so seen by the day it is used,
and not by the month-end whose bill it is missing from.

What is remembered is bounded by `Unknown.most`; further names are counted and not kept.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.processor.charge import plain
from tollspan.processor.counters import Counters
from tollspan.processor.decode import Decoded
from tollspan.processor.errors import StoreError
from tollspan.processor.identity import Mask
from tollspan.processor.judged import Judged
from tollspan.processor.normalize import WANTED, Normalized
from tollspan.processor.pivot import says
from tollspan.processor.schema import SCHEMAS
from tollspan.processor.write import Writer

log = logging.getLogger(__name__)

TABLE: Final = "unknown_attributes"

COUNTS: Final = (
    r"(?i)tokens|token[._-]?(count|usage)|"
    r"(llm|gen_?ai|openai|anthropic|bedrock|gemini|model|prompt|completion)[._](.*[._])?usage([._]|$)"
)
"""Keys that look like a count of tokens."""

MODELS: Final = (
    r"(?i)(^|[._])(llm|gen_?ai|ai|openai|anthropic|bedrock|gemini|chat|completion|embedding)[._](.*[._])?"
    r"model([._-]?(name|id))?$"
)
"""Keys that look like the name of a model."""

NO_COUNTS: Final = re.compile(
    r"(?i)max[._-]?\w*tokens|tokens[._-]?(limit|max|budget|per)|per[._-]?\w*tokens?|token[._-]?(type|id)|"
    # Totals, and sums over calls that are there themselves.
    r"total[._-]?tokens|token_count\.total|aggregated_usage|^gen_ai\.client\.token\.usage$|established_tokens|"
    # Parts that no provider bills apart, or that stand under another key too.
    r"(accepted|rejected)_prediction_tokens|text_tokens|noCacheTokens|textTokens|TokensPerSecond|"
    r"^gen_ai\.usage\.(details|raw|input_token_details|output_token_details)|langsmith\.metadata\.|"
    # What LiteLLM was answered, on a child of the span that is billed; and costs.
    r"^llm\.\w+\.(usage|model)$|^metadata\.usage_object|^llm\.invocation_parameters|^gen_ai\.cost\."
)
"""Of these, the ones that are known to be none, or none that is billed by itself."""

LONGEST: Final = 128
"""Characters of a name that are kept."""
MOST_IN_BATCH: Final = 256
"""Names that one batch is searched for."""
MOST_GROUPS: Final = 4096
"""Names by scope that one batch is counted for."""
FLUSH_S: Final = 60.0
"""How often what grew is written; a name that is new is written at once."""

Name = tuple[str, str, str, bool]
"""Scope, its version, attribute, and whether the spans told usage in a known dialect beside it."""


@dataclass(slots=True)
class _Seen:
    spans: int
    first_ns: int
    last_ns: int


@dataclass(slots=True)
class Unknown:
    """What this process has seen.

    Attributes:
        counters: shared by all stages.
        most: names kept.
    """

    counters: Counters
    most: int = 1000
    _process: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    _seen: dict[Name, _Seen] = field(default_factory=dict)
    _changed: set[Name] = field(default_factory=set)
    _flushed: float = 0.0
    _new: bool = False

    def see(self, decoded: Decoded, normalized: Normalized, now_ns: int) -> None:
        """Take in a batch of n spans, received at ``now_ns``. Nothing raises: no bill waits for this."""
        try:
            self._look(decoded, normalized, now_ns)
        except Exception:
            log.exception("a batch cannot be searched for unknown attributes")
            self.counters.add("dialects.unknown.faults")

    def _look(self, decoded: Decoded, normalized: Normalized, now_ns: int) -> None:
        keys = decoded.attributes.keys
        suspect = np.flatnonzero(_SUSPICIOUS(keys))[:MOST_IN_BATCH]
        names = {int(code): keys[int(code)].as_py()[:LONGEST] for code in suspect}
        names = {code: name for code, name in names.items() if not NO_COUNTS.search(name)}
        if not names:
            return
        found = self._spans(decoded, normalized, names)
        scopes = decoded.scopes.select(["name", "version"]).to_pylist()
        for (scope, code, told), spans in found.items():
            where = scopes[scope]
            self._add((where["name"][:LONGEST], where["version"][:LONGEST], names[code], told), spans, now_ns)

    def flush(self, writer: Writer, everything: bool = False) -> None:
        """Write what is new or grew, if it is time or ``everything``. A store that refuses it holds nothing up.

        Raises:
            StoreUnavailable: the store is away and it is time to stop.
        """
        if not self._changed or not (everything or self._new or time.monotonic() - self._flushed >= FLUSH_S):
            return
        self._flushed, self._new = time.monotonic(), False
        rows = [
            {
                "scope": name[0],
                "scope_version": name[1],
                "attribute": name[2],
                "usage_told": name[3],
                "process": self._process,
                "spans": self._seen[name].spans,
                "first_seen": self._seen[name].first_ns,
                "last_seen": self._seen[name].last_ns,
            }
            for name in sorted(self._changed)
        ]
        try:
            writer.put(TABLE, pa.Table.from_pylist(rows, schema=SCHEMAS[TABLE]), f"{uuid.uuid4().hex}:{TABLE}")
        except StoreError as error:
            log.warning("the list of unknown attributes cannot be written, and is tried again later: %s", error)
            return
        self._changed.clear()

    def _spans(
        self, decoded: Decoded, normalized: Normalized, names: dict[int, str]
    ) -> dict[tuple[int, int, bool], int]:
        """How many spans of a scope carry a name, by (scope, code of the name, whether they tell usage)."""
        attributes = decoded.attributes
        wanted = np.zeros(len(attributes.keys), np.bool_)
        wanted[list(names)] = True
        rows = np.flatnonzero(wanted[attributes.codes])
        owners, codes = attributes.owners[rows], attributes.codes[rows].astype(np.int64)
        told = np.asarray(normalized.columns["token_bearing"])[owners]
        models = np.array([bool(re.search(MODELS, names.get(code, ""))) for code in range(len(wanted))], np.bool_)
        # A model's name beside usage, or on a call whose usage is missed anyway, is no news.
        known = says(plain(normalized.columns["kind"]), "inference")[owners] | told
        news = ~(models[codes] & known)
        owners, codes, told = owners[news], codes[news], told[news]
        silent = np.unique(owners[~told])
        self.counters.add("dialects.unknown.spans", len(silent))
        scope = np.asarray(decoded.spans["scope"]).astype(np.int64)[owners]
        groups, spans = np.unique(np.stack([scope, codes, told.astype(np.int64)]), axis=1, return_counts=True)
        return {
            (int(where), int(code), bool(usage)): int(count)
            for (where, code, usage), count in zip(groups.T[:MOST_GROUPS], spans, strict=False)
        }

    def _add(self, name: Name, spans: int, now_ns: int) -> None:
        seen = self._seen.get(name)
        if seen is None:
            if len(self._seen) >= self.most:
                self.counters.add("dialects.unknown.overflow")
                return
            self._seen[name] = _Seen(spans, now_ns, now_ns)
            self._new = True
            self.counters.add("dialects.unknown.names")
            log.warning(
                "spans of %s %s carry %s, which no dialect here knows; %s",
                name[0] or "(no scope)",
                name[1],
                name[2],
                "their other counts are priced" if name[3] else "if it tells what a model call used, they are unpriced",
            )
        else:
            seen.spans += spans
            seen.first_ns, seen.last_ns = min(seen.first_ns, now_ns), max(seen.last_ns, now_ns)
        self._changed.add(name)


def _suspicious(keys: Any) -> Mask:
    """Which keys look like counts or models and are not read."""
    looks = pc.or_(pc.match_substring_regex(keys, COUNTS), pc.match_substring_regex(keys, MODELS))
    found: Mask = np.asarray(pc.and_not(looks, pc.is_in(keys, value_set=WANTED)))
    return found


_SUSPICIOUS: Final = Judged(_suspicious)
