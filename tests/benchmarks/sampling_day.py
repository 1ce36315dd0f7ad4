"""What samplers keep of a day on which everything goes wrong, and what that costs: a table.

    python tests/benchmarks/sampling_day.py [--hours 24] [--per-minute 20]

The day (tests/end_to_end/incident_day.py) has an error burst, a retry storm, one runaway agent, a new model that costs
sixty times as much and a slow route. Ours is the real line on a real embedded store, minute by minute in virtual time,
under seven rules and a budget of 2 % of the inference cost. Beside it everything, the plain probabilistic sampler at
10 %, and the Collector's tail_sampling as documented (errors, slow traces, calls with many tokens, 10 % of
the rest; decision_wait 30 s, num_traces 500 for a hundredth of a day's usual traffic).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from incident_day import make, probabilistic, rows
from sampled_day import BUDGET, judged, others, rows_of, sampled, stored_of

from tollspan.processor.cli.output import Format, print_rows
from tollspan.processor.queries import run
from tollspan.processor.store import open_store


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hours", type=int, default=24)
    parser.add_argument("--per-minute", type=float, default=20.0, help="traces, on average over the day")
    args = parser.parse_args()
    day = make(args.hours, args.per_minute)
    print(f"{day.hours} hours, {day.traces:,} traces, {len(day.sent):,} spans; inference {day.bill} USD")
    with (
        tempfile.TemporaryDirectory(prefix="tollspan-day-") as made,
        open_store(f"chdb://{made}/store", create=True) as store,
    ):
        folder = Path(made)
        store.migrate()
        began = time.process_time()
        sampled(store, folder, day)
        took = time.process_time() - began
        stored = stored_of(day)
        ours = judged(store, day, stored)
        print_rows(rows([*others(day, stored), (f"Tollspan, {BUDGET} budget", ours)], day), Format.markdown)
        (ledger,) = rows_of(store, "SELECT sum(ledger.cost) AS cost FROM ledger FINAL")
        print(f"\nledger {ledger['cost']} USD, of {day.bill}: {'equal' if ledger['cost'] == day.bill else 'DIFFERENT'}")
        print("telemetry of inference by hour: " + " ".join(f"{(share or 0):.2%}" for share in ours.by_hour))
        found = {row["measure"]: row for row in run(store, "sampling-estimates")}["cost"]
        plain = 10 * float(sum(day.sent[n].cost or 0 for n in probabilistic(day, 10)))
        print(
            f"cost estimated from bodies: ours {found['estimate']:.4f} ± {found['standard_error'] or 0:.4f}, "
            f"plain 10 % {plain:.4f}, the Collector's policies cannot say (no rate is kept); exact {day.bill}\n"
        )
        print_rows(run(store, "sampling"), Format.markdown)
        print(f"\n{took:.1f} s of CPU for {day.hours} virtual hours, levels and budget included")


if __name__ == "__main__":
    main()
