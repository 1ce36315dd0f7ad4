"""The page over a large ledger, in a real browser: from a click on a link until all of a view is drawn.

    python tests/benchmarks/page.py [--rows 1] [--repeat 20] [--store DIR]

Makes a ledger of so many million rows over 30 days (as `clickhouse.py` does), starts ``tollspan serve`` over it and
opens each view, warm, over the window that it has by itself (30 days, an hour, a day) and over the whole 30 days, each
time another one so that no result is reused. Prints median, 95th percentile and longest on the clock, what of it the
server took (median), and how much was loaded. Exits 1 when a view needs over 2 s at p95 in its own window. ``--store``
takes the ledgers that `clickhouse.py` keeps in a directory, and makes there what is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlencode

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from playwright.sync_api import Response, sync_playwright

from tests.benchmarks.clickhouse import DAYS, MILLION, SINCE, fill, parts, settle
from tests.browser.chromium import launch
from tests.end_to_end.service import Service

LIMIT_S = 2.0
WHOLE = DAYS * 24
VIEWS = (("executive", WHOLE), ("oncall", 1), ("oncall", WHOLE), ("debug", 24), ("debug", WHOLE))
"""Views with the hours of their windows: the view's own first."""


def make(directory: Path, rows: int) -> str:
    """URL of a store of so many rows, made by a process of its own: a service has to own it afterwards."""
    subprocess.run([sys.executable, __file__, "--make", str(directory), "--rows", str(rows / MILLION)], check=True)
    return f"chdb://{directory}/store?database=rows_{rows}"


def views(address: str, repeat: int) -> dict[tuple[str, int], list[tuple[float, float, float]]]:
    """View and hours → for each turn seconds on the clock, of the server, and KiB; the first turn is not among them."""
    taken: dict[tuple[str, int], list[tuple[float, float, float]]] = {view: [] for view in VIEWS}
    with sync_playwright() as playwright:
        browser = launch(playwright)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        answers: list[Response] = []
        page.on("response", lambda response: answers.append(response))
        for turn in range(repeat + 1):
            for view, hours in VIEWS:
                until = SINCE + timedelta(days=DAYS, seconds=turn)
                window = {"since": (until - timedelta(hours=hours)).isoformat(), "until": until.isoformat()}
                answers.clear()
                began = time.perf_counter()
                page.goto(f"{address}?{urlencode({'view': view, **window})}")
                page.locator("main[aria-busy=false]").wait_for(timeout=120_000)
                seconds = time.perf_counter() - began
                page.wait_for_load_state("networkidle")
                bodies = [(each.url, each.body()) for each in answers if each.status == 200]
                server = max((json.loads(b).get("took_ms") or 0) / 1000 for url, b in bodies if "/api/" in url)
                refused = [each.status for each in answers if each.status >= 400]
                if refused and not turn:
                    print(f"{view} over {hours} h: not all of it is answered ({refused}), a limit is reached")
                if turn:
                    taken[view, hours].append((seconds, server, sum(len(b) for _, b in bodies) / 1024))
        browser.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=float, default=1.0, help="millions of rows")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--store", type=Path, help="directory that keeps the ledgers")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    rows = round(given.rows * MILLION)
    if given.make:
        from tollspan.processor.store import open_store

        with open_store(f"chdb://{given.make}/store?database=rows_{rows}") as store:
            store.migrate()
            if parts(store)[1] != rows:
                fill(store, rows)
            settle(store)
        return
    with tempfile.TemporaryDirectory(prefix="tollspan-page-") as folder:
        directory = given.store or Path(folder)
        url = make(directory, rows)
        # Of an option given twice the last one counts.
        with Service(directory / "store", ["--page", "127.0.0.1:0", "--store", url]) as service:
            taken = views(service.info["page"], given.repeat)
    slow = False
    print(f"{rows:,} rows over {DAYS} days; seconds on the clock, server, KiB")
    own: set[str] = set()
    for (view, hours), turns in taken.items():
        clock, server = (statistics.median(turn[place] for turn in turns) for place in (0, 1))
        in_order = sorted(seconds for seconds, _, _ in turns)
        p95 = in_order[math.ceil(0.95 * len(turns)) - 1]
        slow |= view not in own and p95 > LIMIT_S
        own.add(view)
        spread = f"p95 {p95:.2f}, longest {in_order[-1]:.2f}"
        print(f"{view:10}{hours:4} h {clock:6.2f} ({spread}), server {server:.2f}, {turns[-1][2]:.0f} KiB")
    sys.exit(1 if slow else 0)


if __name__ == "__main__":
    main()
