"""``tollspan top``: what happens now, live."""

from __future__ import annotations

import json
import ssl
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tollspan.processor.cli.options import Store
from tollspan.processor.cli.output import Format, plain, text
from tollspan.processor.errors import ConfigError, StoreUnavailable
from tollspan.processor.queries.window import instant

if TYPE_CHECKING:
    from tollspan.processor.top import Frame

BARS: Final = "▁▂▃▄▅▆▇█"
LAG: Final = "tollspan_lag_seconds"


def top(
    store: Store = "chdb://",
    window: Annotated[str, typer.Option(help="How far back rates look: 90s, 5m, 1h, 7d.")] = "5m",
    by: Annotated[str, typer.Option(help="Dimensions, with commas: tenant,feature,model,service,error …")] = (
        "tenant,feature,model"
    ),
    limit: Annotated[int, typer.Option(min=1, max=100, help="Rows of each.")] = 5,
    interval: Annotated[float, typer.Option(min=0.5, help="Seconds between two looks.")] = 2.0,
    at: Annotated[str | None, typer.Option(help="End of the window instead of now: an ISO instant or an age.")] = None,
    metrics: Annotated[
        str, typer.Option(help="Where a service tells its lag, http://host:4318/metrics; found where the store is.")
    ] = "",
    once: Annotated[bool, typer.Option("--once", help="Look once and end, for scripts.")] = False,
    format: Annotated[Format, typer.Option(help="table or json; json looks once.")] = Format.table,
) -> None:
    """Show what happens now: inferences and cost by the second, who causes them, errors, what has no price, lag.

    Works on a running service, on a server and on a store that nobody writes to. Ctrl-C ends it.

    Example: tollspan top --window 15m --by tenant,model
    """
    from tollspan.processor.top import dimensions

    try:
        if format not in (Format.table, Format.json):
            raise ConfigError("--format is table or json here.", "For one table: tollspan query.")
        now = datetime.now(UTC)
        start = instant(window, "--window", now)
        if start is None or start >= now or not window.strip()[:1].isdigit() or "-" in window:
            raise ConfigError(f"--window {window!r} is no age.", "For example 90s, 5m, 1h or 7d.")
        asked, end = dimensions(by), instant(at, "--at")
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    look = _Look(store, now - start, asked, limit, end, metrics)
    try:
        if once or format is Format.json:
            frame = look()
            if format is Format.json:
                typer.echo(json.dumps(_json(frame), ensure_ascii=False))
            else:
                Console().print(_drawn(frame))
            return
        with Live(console=Console(), screen=True, auto_refresh=False) as live:
            while True:
                try:
                    live.update(_drawn(look()), refresh=True)
                except StoreUnavailable as error:
                    # A service that restarts is there again in a moment.
                    look.close()
                    live.update(Text(f"{error}\nTrying again …", style="yellow"), refresh=True)
                time.sleep(interval)
    except KeyboardInterrupt:
        pass
    finally:
        look.close()


class _Look:
    """Looks again and again, through one handle while it holds."""

    def __init__(
        self, url: str, window: timedelta, by: list[str], limit: int, at: datetime | None, metrics: str
    ) -> None:
        self.url, self.window, self.by, self.limit, self.at, self.metrics = url, window, by, limit, at, metrics
        self._reader: Any = None

    def __call__(self) -> Frame:
        from tollspan.processor.store import connect_for_query
        from tollspan.processor.top import look

        if self._reader is None:
            self._reader = connect_for_query(self.url)
        return look(self._reader, self.window, self.by, self.limit, self.at, self._lag())

    def _lag(self) -> float | None:
        from tollspan.processor.store import Embedded, locate, lock

        url, where = self.metrics, locate(self.url)
        if not url and isinstance(where, Embedded):
            owner = lock.holder(where.directory)
            service = lock.read_service(where.directory, owner) if owner is not None else {}
            if not service.get("sql"):
                return None
            url = f"{'https' if service.get('sql_tls') else 'http'}://{service['sql']}/metrics"
        return _told(url, trusted=not self.metrics) if url else None

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()


def _told(url: str, trusted: bool) -> float | None:
    """The lag that a service tells; None where it does not answer."""
    context = ssl.create_default_context()
    if trusted:
        # Its own file said where it is; its certificate has the name that others know it by.
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        if not url.startswith(("http://", "https://")):
            return None
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            lines = answer.read().decode().splitlines()
        return next((float(line.split()[1]) for line in lines if line.startswith(f"{LAG} ")), None)
    except (OSError, ValueError):
        return None


def _json(frame: Frame) -> Any:
    total = dict(frame.total)
    return plain(
        {
            "since": frame.since,
            "until": frame.until,
            "currency": "USD",
            **total,
            "inferences_per_s": frame.rate(total["inferences"], 1),
            "cost_per_h": frame.rate(total["cost"], 3600),
            "lag_s": frame.lag_s,
            "last": frame.last,
            "top": dict(frame.tops),
        }
    )


def _drawn(frame: Frame) -> RenderableType:
    total = frame.total
    errors = Decimal(100 * total["errors"]) / total["calls"] if total["calls"] else None
    cells = [
        ("inferences/s", _figure(frame.rate(total["inferences"], 1)), ""),
        ("USD/h", _figure(frame.rate(total["cost"], 3600)), "bold"),
        ("errors", "—" if errors is None else f"{errors:.1f} %", "red" if total["errors"] else ""),
        ("without price", text(total["unpriced"]), "yellow" if total["unpriced"] else ""),
        ("in part", text(total["partial"]), "yellow" if total["partial"] else ""),
        ("retries", text(total["retries"]), ""),
        ("cold starts", text(total["cold_starts"]), ""),
        ("p95", _seconds(total["p95_s"]), ""),
        ("arrival p95", _seconds(total["arrival_s"]), ""),
        ("lag", _seconds(frame.lag_s), "red" if (frame.lag_s or 0) > 60 else ""),
    ]
    head = Columns([Text.assemble((value, style), " ", (name, "dim")) for name, value, style in cells], padding=(0, 3))
    past = Table.grid(padding=(0, 2))
    past.add_row(Text("inferences", style="dim"), _bars([Decimal(each) for each in frame.inferences]))
    past.add_row(Text("cost", style="dim"), _bars(frame.cost))
    title = Text(f"tollspan  {frame.since:%Y-%m-%d %H:%M:%S} – {frame.until:%H:%M:%S} UTC", style="bold")
    parts: list[RenderableType] = [title, Text(""), head, Text(""), past]
    if frame.last is not None:
        newest = f"{frame.last:%Y-%m-%dT%H:%M:%SZ}"
        parts.append(Text(f"Nothing in this window. The newest span started at {newest}: --at {newest}", "yellow"))
    elif not total["calls"] and not any(frame.tops.values()):
        parts.append(Text("The ledger is empty.", style="yellow"))
    if total["unpriced"]:
        parts.append(Text(f"{text(total['unpriced'])} inferences have no price and are in no cost.", style="yellow"))
    return Group(*parts, Columns([_ranked(frame, name) for name in frame.tops], padding=(0, 4)))


def _ranked(frame: Frame, name: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(name, no_wrap=True, max_width=28)
    for heading in ("USD/h", "inf/s", "errors", "no price"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in frame.tops[name]:
        table.add_row(
            Text(text(row["name"] or None)),
            _figure(frame.rate(row["cost"], 3600)),
            _figure(frame.rate(row["inferences"], 1)),
            Text(text(row["errors"]), style="red" if row["errors"] else "dim"),
            Text(text(row["unpriced"]), style="yellow" if row["unpriced"] else "dim"),
        )
    return table


def _figure(value: Decimal | None) -> str:
    """Three digits that count; an em dash for an unknown."""
    if value is None:
        return "—"
    if not value:
        return "0"
    places = max(0, 2 - value.adjusted())
    return f"{value:,.{min(places, 12)}f}"


def _seconds(value: float | None) -> str:
    return "—" if value is None else f"{value:,.2f} s" if value < 100 else f"{value:,.0f} s"


def _bars(values: list[Decimal]) -> Text:
    most = max(values, default=Decimal(0))
    if not most:
        return Text("·" * len(values), style="dim")
    return Text("".join(BARS[int(each / most * (len(BARS) - 1))] if each else " " for each in values), style="cyan")
