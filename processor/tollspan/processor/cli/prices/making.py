"""``tollspan prices import`` and ``schema``: books made from files, and the format of a book for editors."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Annotated, Final

import typer

from tollspan.pricing.entries import Entry, book_text
from tollspan.pricing.onprem import read_tco
from tollspan.pricing.skypilot import read_skypilot
from tollspan.pricing.yamlbook import parse_layer
from tollspan.processor.cli.inputs import fail
from tollspan.processor.errors import ConfigError

_SHOWN_SKIPS: Final = 10

Output = Annotated[Path | None, typer.Option("-o", "--output", help="Write the book here; left out = print it.")]


def skypilot(
    file: Annotated[Path, typer.Argument(help="A CSV file of SkyPilot's catalogue (v8), e.g. aws/vms.csv.")],
    cloud: Annotated[str, typer.Option(help="cloud.provider of the spans: aws, gcp, azure, lambda ...")],
    output: Output = None,
    region: Annotated[list[str] | None, typer.Option(help="Only this region; may be given several times.")] = None,
    retrieved_at: Annotated[str | None, typer.Option(help="Day of the file, 2026-11-21; left out = today.")] = None,
    url: Annotated[str, typer.Option(help="Where the file was had from; stands as the prices' source.")] = "",
) -> None:
    """Make a price book of GPU and CPU hours from a catalogue of SkyPilot that you have.

    Lines that cannot be used are left out and told. The prices are exactly the file's; a spot price is an estimate.

    Example: tollspan prices import skypilot vms.csv --cloud aws --region us-east-1 -o aws.yaml
    """
    day = retrieved_at or datetime.now(UTC).date().isoformat()
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", day):
        fail(f"--retrieved-at {day}: not a day. Write it like 2026-11-21.")
    made = read_skypilot(file, cloud=cloud.strip().lower(), retrieved_at=day, url=url, regions=region or None)
    _write(
        output,
        f"skypilot-{cloud.strip().lower()}",
        f"{day}.{made.sha256[:8]}",
        made.entries,
        f"Prices of {file.name}, in the format of SkyPilot's catalogue.",
    )
    typer.echo(f"{made.lines} lines: {len(made.entries)} prices, {len(made.skipped)} lines left out.", err=True)
    for skipped in made.skipped[:_SHOWN_SKIPS]:
        typer.echo(f"  {file}:{skipped.line}: {skipped.reason}", err=True)
    if len(made.skipped) > _SHOWN_SKIPS:
        typer.echo(f"  and {len(made.skipped) - _SHOWN_SKIPS} more", err=True)


def tco(
    file: Annotated[Path, typer.Argument(help="Total cost of ownership (YAML); see `tollspan prices breakeven`.")],
    output: Output = None,
    useful: Annotated[
        bool, typer.Option("--useful", help="The price of a useful hour; idle seconds are then at 0.")
    ] = False,
) -> None:
    """Make a price book of the hour of GPUs that you own.

    Example: tollspan prices import tco hall-2.yaml -o hall-2-prices.yaml
    """
    owned = read_tco(file)
    day = datetime.now(UTC).date().isoformat()
    _write(output, owned.id, day, owned.to_entries(useful=useful), f"Made from {file.name}.")


def _write(output: Path | None, name: str, version: str, entries: Iterable[Entry], about: str) -> None:
    """The book to a file or to stdout, once it is known to load."""
    text = book_text(name, version, entries, about=about)
    parse_layer(text.encode(), str(output or "-"))
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{output}: cannot write it: {reason}.", "Check the path and its permissions.") from error


def schema() -> None:
    """Print the JSON Schema of price books, so that an editor completes and checks them.

    Example: tollspan prices schema > book.schema.json
    """
    file = resources.files("tollspan.pricing").joinpath("book.schema.json")
    print(file.read_text(encoding="utf-8"), end="")
