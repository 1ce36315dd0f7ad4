"""The plugin side: would a program that is started in this environment be instrumented, and where would its spans go?

In: the entry points and the variables of this environment; run it as the program is run. Nothing of the program is
imported but the instrumentors' own modules.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from tollspan.processor.config import Config, Places, TlsSettings
from tollspan.processor.doctor.finding import FAIL, OK, WARN, Finding, fail, ok, warn
from tollspan.processor.doctor.live import Live, reachable
from tollspan.processor.errors import ConfigError, TollspanError
from tollspan.processor.runtime import RuntimeConfig
from tollspan.processor.store import Embedded, locate
from tollspan.processor.store import lock as store_lock

if TYPE_CHECKING:
    from tollspan.processor.doctor import Asked

INSTRUMENTORS: Final = "opentelemetry_instrumentor"
EXPORTERS: Final = "opentelemetry_traces_exporter"
SAMPLERS: Final = "opentelemetry_traces_sampler"
OURS: Final = "tollspan_"
PROTOCOLS: Final = {"grpc": 4317, "http/protobuf": 4318, "http/json": 4318}


def plugin(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    """The environment's instrumentations and exporter."""
    env = asked.environment
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        yield fail("plugin.sdk", "OTEL_SDK_DISABLED=true: no span is made.", "Unset it.")
    yield from _launcher()
    yield from _instrumentations(env)
    yield from _sampler(env)
    yield from _exporter(config, live, env)


def _launcher() -> Iterator[Finding]:
    beside = Path(sys.executable).with_name("opentelemetry-instrument")
    found = beside if beside.exists() else shutil.which("opentelemetry-instrument")
    if found is None:
        yield fail("plugin.launcher", "There is no opentelemetry-instrument here.", "pip install opentelemetry-distro")
    else:
        yield ok("plugin.launcher", f"{found} python your_program.py instruments it.")


def _instrumentations(env: Mapping[str, str]) -> Iterator[Finding]:
    every = list(entry_points(group=INSTRUMENTORS))
    ours = sorted((each for each in every if each.name.startswith(OURS)), key=lambda each: each.name)
    if not ours:
        yield fail("plugin.entry_points", "No instrumentation of Tollspan is installed here.", "pip install tollspan")
        return
    off = {each.strip() for each in env.get("OTEL_PYTHON_DISABLED_INSTRUMENTATIONS", "").split(",") if each.strip()}
    load, lacking, disabled = [], 0, []
    for each in ours:
        short = each.name.removeprefix(OURS)
        if each.name in off or "*" in off:
            disabled.append(short)
            continue
        try:
            conflict, present = _conflict(each)
        except Exception as error:  # noqa: BLE001  (a library that cannot even be imported is what is looked for)
            yield fail(f"plugin.{short}", f"It cannot be loaded: {type(error).__name__}: {error}.", "Reinstall it.")
            continue
        if conflict:
            yield fail(
                f"plugin.{short}",
                f"It is not instrumented: {conflict.rstrip('.')}.",
                "Install a version that is served.",
            )
        elif present:
            load.append(short)
        else:
            lacking += 1
    said = f"Would be instrumented here: {', '.join(load) or 'nothing'}; {lacking} others have no library here."
    yield Finding(
        "plugin.instrumentations", OK if load else WARN, said, "" if load else "Run this where the program runs."
    )
    if disabled:
        yield warn("plugin.disabled", f"Switched off by OTEL_PYTHON_DISABLED_INSTRUMENTATIONS: {', '.join(disabled)}.")
    unknown = sorted(name for name in off - {each.name for each in every} - {"*"} if name.startswith("tollspan"))
    if unknown:
        yield warn("plugin.disabled_names", f"Nothing is called {', '.join(unknown)}.", "Names begin with tollspan_.")


def _conflict(point: EntryPoint) -> tuple[str, bool]:
    """(what speaks against it, whether its library is there)."""
    from opentelemetry.instrumentation.dependencies import get_dependency_conflicts

    stand_in = point.load()
    libraries = getattr(stand_in, "libraries", ())
    if libraries and not any(_there(each) for each in libraries):
        return "", False
    real: Any = stand_in
    if where := getattr(stand_in, "real", ""):
        module, _, name = where.partition(":")
        real = getattr(import_module(module), name)
    wanted = real().instrumentation_dependencies()
    found = get_dependency_conflicts(wanted)
    if found is None:
        return "", True
    # Nothing of it installed is no conflict: the library is one of several that it could serve.
    absent = not found.found and not found.found_any
    return ("", False) if absent else (str(found), True)


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _sampler(env: Mapping[str, str]) -> Iterator[Finding]:
    sampler = env.get("OTEL_TRACES_SAMPLER", "").strip()
    argument = env.get("OTEL_TRACES_SAMPLER_ARG", "").strip()
    if sampler in ("", "always_on", "parentbased_always_on") or (
        sampler.endswith("traceidratio") and argument in ("1", "1.0")
    ):
        return
    if sampler == "tollspan":
        yield _own_sampler(argument)
        return
    yield fail(
        "plugin.sampler",
        f"OTEL_TRACES_SAMPLER={sampler}: calls that are not sampled are in no bill.",
        "Unset it, or set it to tollspan, which sends what every call used: the cost of all is kept, and spans are "
        "sampled by the processor too (sampling.keep).",
    )


def _own_sampler(argument: str) -> Finding:
    if not any(each.name == "tollspan" for each in entry_points(group=SAMPLERS)):
        return fail("plugin.sampler", "The sampler `tollspan` is not installed here.", "pip install tollspan")
    try:
        share = float(argument or "1")
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        return warn(
            "plugin.sampler",
            f"OTEL_TRACES_SAMPLER_ARG={argument} is no share of traces: every trace is sampled.",
            "Give a number from 0 to 1, as 0.1 for one in ten.",
        )
    return ok("plugin.sampler", f"{share:g} of the traces are sampled; of all others comes what they used.")


def _exporter(config: Config, live: Live, env: Mapping[str, str]) -> Iterator[Finding]:
    wanted = [each.strip() for each in (env.get("OTEL_TRACES_EXPORTER") or "otlp").split(",") if each.strip()]
    if "tollspan" in wanted:
        yield from _drop_in(env)
    if "otlp" not in wanted and "tollspan" not in wanted:
        yield fail(
            "plugin.exporter",
            f"OTEL_TRACES_EXPORTER={','.join(wanted)}: no span comes to Tollspan.",
            "Set it to otlp (a service), or to tollspan (in the program itself).",
        )
        return
    if "tollspan" in wanted and "otlp" in wanted:
        yield warn("plugin.exporter", "Spans go to the store and to an OTLP endpoint.", "Two ledgers may come of it.")
    if "otlp" in wanted:
        yield from _otlp(config, live, env)


def _drop_in(env: Mapping[str, str]) -> Iterator[Finding]:
    if not any(each.name == "tollspan" for each in entry_points(group=EXPORTERS)):
        yield Finding(
            "plugin.exporter",
            FAIL,
            "The exporter `tollspan` is not installed here.",
            "pip install 'tollspan[processor,embedded]'",
        )
        return
    try:
        where = locate(RuntimeConfig.from_environment(env).store)
    except TollspanError as error:
        yield fail("plugin.exporter", error.message, error.hint)
        return
    if isinstance(where, Embedded):
        try:
            import chdb  # noqa: F401
        except ImportError:
            yield fail("plugin.exporter", "An embedded store needs chdb.", "pip install 'tollspan[embedded]'")
            return
        owner = store_lock.holder(where.directory)
        if owner is not None:
            yield warn(
                "plugin.exporter",
                f"{where.url} is {owner}'s: what this program exports goes through it.",
                "Exporting to it with OTEL_TRACES_EXPORTER=otlp is simpler.",
            )
            return
    yield ok("plugin.exporter", f"Spans are priced in the program itself, into {where.url}.")


def _otlp(config: Config, live: Live, env: Mapping[str, str]) -> Iterator[Finding]:
    own = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "").strip()
    shared = env.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
    variable = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT" if own else "OTEL_EXPORTER_OTLP_ENDPOINT"
    protocol = (
        env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or "grpc"
    ).strip()
    if protocol not in PROTOCOLS:
        yield fail("plugin.protocol", f"{protocol!r} is no OTLP protocol.", f"One of {', '.join(PROTOCOLS)}.")
        return
    over_http = protocol != "grpc"
    endpoint = own or shared or f"http://localhost:{PROTOCOLS[protocol]}"
    if "://" not in endpoint:
        if over_http:
            yield fail("plugin.endpoint", f"{variable}={endpoint} has no scheme.", f"Write http://{endpoint}.")
            return
        endpoint = f"http://{endpoint}"
    url = urlsplit(endpoint)
    try:
        port = url.port or (443 if url.scheme == "https" else 80)
    except ValueError:
        yield fail("plugin.endpoint", f"{variable}={endpoint} has no right port.", "Write http://host:4317.")
        return
    yield from _matches(config, live, url.hostname or "", port, over_http, protocol)
    if over_http and own and url.path in ("", "/"):
        yield fail(
            "plugin.endpoint",
            f"{variable}={own} is used as it stands, and traces go to /v1/traces.",
            f"Write {own.rstrip('/')}/v1/traces, or use OTEL_EXPORTER_OTLP_ENDPOINT.",
        )
    elif over_http and not own and url.path.rstrip("/").endswith("/v1/traces"):
        yield fail("plugin.endpoint", f"{variable}={shared} gets /v1/traces added once more.", "Leave the path out.")
    encrypted = config.get(TlsSettings).cert is not None
    if _is_ours(live, url.hostname or "", port) and (url.scheme == "https") != encrypted:
        said = "wants TLS, and the service has none" if not encrypted else "wants no TLS, and the service has it"
        yield fail("plugin.tls", f"{endpoint} {said}.", f"Write {'https' if encrypted else 'http'}://…")
    try:
        with socket.create_connection((url.hostname or "", port), timeout=3.0):
            pass
    except OSError as error:
        do = "Start the service (tollspan serve), or name where it is."
        yield fail("plugin.endpoint", f"Nothing answers at {url.hostname}:{port}: {error.strerror or error}.", do)
    else:
        yield ok("plugin.endpoint", f"Spans go to {endpoint} by {protocol}, and something answers there.")
    headers = env.get("OTEL_EXPORTER_OTLP_TRACES_HEADERS") or env.get("OTEL_EXPORTER_OTLP_HEADERS") or ""
    if config.get(Places).senders is not None and "authorization" not in headers.lower():
        yield fail(
            "plugin.headers",
            "Senders log in here, and no Authorization header is set.",
            "OTEL_EXPORTER_OTLP_HEADERS='authorization=Bearer%20tsp_…'",
        )
    for signal in ("METRICS", "LOGS"):
        if env.get(f"OTEL_{signal}_EXPORTER", "otlp") == "otlp" and shared and _is_ours(live, url.hostname or "", port):
            yield warn(
                f"plugin.{signal.lower()}",
                f"{signal.capitalize()} go to the same endpoint, which takes traces.",
                f"OTEL_{signal}_EXPORTER=none, or have Tollspan forward them.",
            )


def _matches(config: Config, live: Live, host: str, port: int, over_http: bool, protocol: str) -> Iterator[Finding]:
    """4317 and 4318 taken for each other: the most common mistake with OTLP."""
    grpc_port, http_port = _port(live.grpc, 4317), _port(live.http, 4318)
    if (over_http and port == grpc_port) or (not over_http and port == http_port):
        right = http_port if over_http else grpc_port
        other = "grpc" if over_http else "http/protobuf"
        yield fail(
            "plugin.protocol",
            f"Port {port} is for {'gRPC' if over_http else 'HTTP'}, and the protocol is {protocol}.",
            f"Use port {right}, or OTEL_EXPORTER_OTLP_PROTOCOL={other}.",
        )


def _port(address: str, default: int) -> int:
    try:
        return reachable(address)[1] or default
    except ConfigError:
        return default


def _is_ours(live: Live, host: str, port: int) -> bool:
    local = host in ("localhost", "127.0.0.1", "::1")
    return local and live.running and port in (_port(live.grpc, 0), _port(live.http, 0))
