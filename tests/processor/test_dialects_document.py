"""DIALECTS.md says what the tables and the fixtures say.

``TOLLSPAN_WRITE_DOCS=1`` writes it anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tollspan.processor.providers import CLOUDS, MODELS, SERVERS
from tollspan.processor.usage_dialects import COUNTING, USAGE, Member, Place

from .dialect_bill import FOLDER, cases

DOCUMENT = Path(__file__).parents[2] / "processor" / "DIALECTS.md"

HEAD = """# Dialects

Which spans of other libraries are priced, and how their counts are read. Nothing in the program that sends them has to
change. This page is generated from the tables (`dialects.py`, `usage_dialects.py`, `providers.py`) and from the
fixtures of `tests/processor/dialects`, by `TOLLSPAN_WRITE_DOCS=1 pytest tests/processor/test_dialects_document.py`.

A *run* is spans of the real library, called against a local server that speaks the provider's wire and reports known
usage; *sources* are spans written from the library's sources, where it could not be run. *Counted* is how the counts
include each other: `otel_inclusive` has cached tokens inside the input and reasoning inside the output,
`cache_exclusive` has cached tokens beside the input, `gemini` has thoughts beside the output, `disjoint` has everything
beside everything. What a library does not tell is not made up: the cost is then of what it told.

The server of the runs answers every chat with 1,000 input tokens, of which 600 are read from a cache (and, from
Anthropic and Bedrock, 300 written to one), and 200 output tokens, of which 50 are reasoning (not from Anthropic and
Bedrock); every embedding with 80. A fixture has the spans (scope, version, attributes; content and paths left out), the
versions of the libraries and the date, what was `used`, what is `billed` for it to the last digit, and what the library
`lost`. To add a dialect: export such spans from the library, add them as a case, add rows to the tables until the case
is billed for what was used, and write this page anew.

"""

EXCEPTIONS = """## Exceptions

How the spans of one library count can differ by provider and version. The scope, its version and the provider decide;
the first row that fits holds, else what its dialect says.

"""

KEYS = """## Attributes of counts

A span's counts are all read in the first dialect of which it carries any; after an arrow stands a member of a JSON
object. The conventions' names are those of OpenTelemetry GenAI from 1.26 to the newest.

"""

PROVIDERS = """## Providers

The attributes are in `dialects.py` (`TEXT`). Where they tell none, or only a framework:

"""

UNKNOWN = """## What is not here

A span that carries what looks like token counts or names of models and is in no table is not guessed at. It is counted
(`tollspan_dialects_unknown_spans_total`), each of its attributes is named once in the log, and all of them are listed,
with the instrumentation scope and how many spans had them, by

    tollspan query unknown-attributes

Names only, no values; a thousand of them at the most. `usage_told` says that the same spans told usage in a dialect
that is known: they are priced, maybe without a part.

## What nothing on a span tells

* Whose price it is, where neither an attribute nor the scope names the provider: the name of the model decides (below),
  the row says `provider_assumed`, and a model that many sell stays unpriced.
* Azure OpenAI and other compatible servers behind OpenAI's client, in libraries that call every such call `openai`.
* The region, the service tier and the processing (batch) of a call, in most libraries: standard prices then.
* Cached tokens that a library leaves out of every count, or adds to the plain input (the column *not told*).
* Which of Logfire's two spans of a streamed call is the call: the request ends without usage and is `not_billed`,
  `usage_deferred`; the log beside it, made at the stream's end, is billed, or `unpriced` where it tells none either.
* A library's own sums over calls that it made (agents, chains, workflows) are roll-ups where a call below them told its
  usage, and billed where none did.
* AWS Bedrock AgentCore and ADOT have no dialect of their own: their spans are those of the libraries above.
"""


def joined(values: Iterable[str], by: str = ", ") -> str:
    return by.join(dict.fromkeys(values))


def line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join([line(head), line("--" for _ in head), *map(line, rows)]) + "\n"


def versions(found: Iterable[dict[str, Any]]) -> str:
    """Libraries with the versions that were tried, in the order of their names."""
    known: dict[str, list[str]] = {}
    for case in found:
        for library, version in case["libraries"].items():
            if version not in known.setdefault(library, []):
                known[library].append(version)
    return "; ".join(f"{library} {', '.join(sorted(tried, key=_order))}" for library, tried in sorted(known.items()))


def _order(version: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in version.replace("-", ".").split(".")]


def tried() -> str:
    rows = []
    for path in sorted(FOLDER.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document["cases"]
        lost: dict[str, list[str]] = {}
        for case in found:
            for what in case["lost"]:
                lost.setdefault(what, []).append(case["case"])
        rows.append(
            (
                document["title"],
                versions(found),
                joined(case["made"] for case in found),
                joined(row["convention"] or "—" for case in found for row in case["billed"]["rows"]) or "—",
                "; ".join(f"{what} ({joined(names)})" for what, names in lost.items()) or "—",
            )
        )
    return table(("spans of", "versions tried", "fixture", "counted", "not told (in)"), rows)


def exceptions() -> str:
    return table(
        ("scope", "providers, models", "versions", "counted", "tried"),
        (
            (
                f"`{rule.scope}`",
                joined([*sorted(rule.providers), *(f"*{part}*" for part in rule.models)]) or "any",
                f"{rule.since or '…'} – {rule.before or '…'}" if rule.since or rule.before else _unless(rule.unless),
                rule.convention,
                rule.seen,
            )
            for rule in COUNTING
        ),
    )


def _unless(keys: Iterable[str]) -> str:
    return f"without {joined(f'`{key}`' for key in keys)}" if keys else "all"


def place(where: Place) -> str:
    return f"`{where.key}` → {'.'.join(where.path)}" if isinstance(where, Member) else f"`{where}`"


def keys() -> str:
    rows = []
    for usage in USAGE:
        for part in (usage.counts, usage.parts):
            for count, places in part.items():
                rows.append((usage.name, usage.convention, count, joined(map(place, places))))
    return table(("dialect", "counted", "count", "attributes, the preferred one first"), rows)


def providers() -> str:
    return (
        table(
            ("scope begins with", "provider"),
            ((f"`{scope}`", name) for scope, name in {**CLOUDS, **SERVERS}.items()),
        )
        + "\n"
        + table(("model's name begins with", "provider"), ((f"`{pattern}`", name) for pattern, name in MODELS))
    )


def document() -> str:
    return "\n".join(
        [
            HEAD + tried(),
            EXCEPTIONS + exceptions(),
            KEYS + keys(),
            PROVIDERS + providers(),
            UNKNOWN,
        ]
    )


def test_the_document_is_what_the_tables_and_fixtures_say() -> None:
    made = document()
    if os.environ.get("TOLLSPAN_WRITE_DOCS"):
        DOCUMENT.write_text(made, encoding="utf-8")
    assert DOCUMENT.read_text(encoding="utf-8") == made, "run this with TOLLSPAN_WRITE_DOCS=1"


@pytest.mark.parametrize("case", cases())
def test_every_case_is_in_the_document_s_versions(case: str) -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert all(version in text for version in cases()[case]["libraries"].values())
