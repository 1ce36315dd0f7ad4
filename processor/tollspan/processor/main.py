"""The ``tollspan`` command: finds out whether the command line's libraries are installed before it imports them."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script."""
    try:
        import typer  # noqa: F401  (the light base install has the instrumentation without the command line)
    except ModuleNotFoundError:
        sys.exit("error: the tollspan command needs its extra: pip install 'tollspan[processor,embedded]'")
    from tollspan.processor.cli.app import run

    run()


if __name__ == "__main__":
    main()
