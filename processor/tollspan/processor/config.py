"""The one configuration: every setting has one name, in a YAML file, in the environment and on the command line.

    journal:                         TOLLSPAN_JOURNAL_MAX_BYTES=8GiB          --journal-max-bytes 8GiB
      max_bytes: 8 GiB

In: flags, environment, a file and the defaults; the first of them that says a thing wins. Out: a `Config`, from which
each part of the processor takes its dataclass: ``load().get(JournalLimits)``. What is wrong, in all places at once, is
one `ConfigError` with a line for each mistake: file, line, setting, what it has to be, and the nearest right name.

How a setting is added
----------------------
1. A frozen dataclass in the module that needs it: every field with a type of `values`' list, a default, and a line in
   the docstring's ``Attributes:``, which becomes the setting's help. ``max_bytes: int`` reads "8 GiB";
   ``timeout_s: float`` reads "30s" and is called ``timeout`` outside. `values` lists all types, ``Secret`` among them.
   A rule about one value is ``Annotated[float, Between(0, 1)]``; one about several is a ``__post_init__`` that raises
   ValueError with a sentence. Types have to be importable at run time (not under TYPE_CHECKING).
2. A line in `SECTIONS` below: ``Section("forward", "tollspan.processor.forward:ForwardSettings")``. The module is
   imported only when its section is asked for. Names in ``live`` are taken by SIGHUP without a restart; whoever
   names one there applies it in ``Service._apply``.
3. ``config.get(ForwardSettings)`` where the part is made: `service_config` and `runtime_config` below.

That is all: YAML, environment, flag, ``--list-settings``, ``--print-config``, errors and nearest names follow.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import yaml

from tollspan.processor.errors import ConfigError, TollspanError
from tollspan.processor.sections import PREFIX, Section, Setting, flag, settings_of
from tollspan.processor.sources import first_given, from_environment, from_file
from tollspan.processor.values import Given, Problem, describe, masked, read

if TYPE_CHECKING:
    from tollspan.processor.runtime import RuntimeConfig
    from tollspan.processor.service import ServiceConfig

T = TypeVar("T")

FILE: Final = "TOLLSPAN_CONFIG"
"""Names the file where no ``--config`` does."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are and who may come: the settings without a section.

    Attributes:
        store: chdb:// (embedded), chdb:///DIR or clickhouse://user:pass@host:8443/db?secure=true.
        prices: your price book (YAML), in front of the shipped one.
        listen: OTLP/gRPC address; port 0 is a free one.
        http: OTLP/HTTP address, also of /healthz, /readyz and /metrics.
        sql: read-only SQL port of an embedded store, ClickHouse's HTTP interface.
        page: web page of what inference costs; where the default is taken, another port is used.
        senders: YAML file of who may send, see 'tollspan token'.
        readers: YAML file of who may ask the SQL port and see the page, see 'tollspan token --reader'.
        insecure_listen: listen beyond loopback without encryption.
        journal: journal directory; by default beside the store.
    """

    store: str = "chdb://"
    prices: Path | None = None
    listen: str = "127.0.0.1:4317"
    http: str | None = "127.0.0.1:4318"
    sql: str | None = "127.0.0.1:8123"
    page: str | None = "127.0.0.1:8130"
    senders: Path | None = None
    readers: Path | None = None
    insecure_listen: bool = False
    journal: Path | None = None


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Certificates, for both OTLP ports, and for the SQL port where it has readers or is open to other machines.

    Attributes:
        cert: PEM file of the certificate.
        key: PEM file of its key, without a password.
        client_ca: PEM file of the authorities of senders' certificates (mTLS).
    """

    cert: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None) or (self.client_ca is not None and self.cert is None):
            raise ValueError(
                "TLS needs a certificate and its key: give both (--tls-cert, --tls-key), and client_ca only with them"
            )


@dataclass(frozen=True, slots=True)
class JournalLimits:
    """How large the journal may grow.

    Attributes:
        max_bytes: cap on disk; senders are asked to come back when it is reached.
        segment_bytes: size from which on a new segment file is begun; room comes back by whole segments.
        memory_bytes: payloads held in memory for the worker; what is beyond is read from disk.
        pending_bytes: payloads that wait for their sync.
    """

    max_bytes: int = 8 << 30
    segment_bytes: int = 64 << 20
    memory_bytes: int = 64 << 20
    pending_bytes: int = 256 << 20

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.segment_bytes, self.pending_bytes) <= 0:
            raise ValueError("max_bytes, segment_bytes and pending_bytes have to be above zero")


@dataclass(frozen=True, slots=True)
class ShutdownSettings:
    """How long a stop may take: both together are the deadline of SIGTERM.

    Attributes:
        grace_s: what requests in flight get to be answered.
        drain_s: what the pipeline gets to write what was accepted; the journal keeps the rest for the next start.
    """

    grace_s: float = 5.0
    drain_s: float = 25.0


SECTIONS: Final[tuple[Section, ...]] = (
    Section(
        "",
        "tollspan.processor.config:Places",
        names={"journal": "journal.directory"},
        aliases={"journal.directory": ("journal",), "prices": ("book",)},
    ),
    Section("tls", "tollspan.processor.config:TlsSettings"),
    Section("journal", "tollspan.processor.config:JournalLimits"),
    Section(
        "pipeline",
        "tollspan.processor.pipeline:Settings",
        names={
            "keep": "sampling.keep",
            "decision_wait_s": "sampling.decision_wait",
            "decision_timeout_s": "sampling.decision_timeout",
            "quiet_timeout_s": "sampling.quiet_timeout",
            "max_trace_spans": "sampling.max_trace_spans",
            "max_pending_bytes": "sampling.max_pending_bytes",
            "max_pending_disk_bytes": "sampling.max_pending_disk_bytes",
            "max_pending_spans": "sampling.max_pending_spans",
            "remembered_traces": "sampling.remembered_traces",
        },
        aliases={"sampling.keep": ("keep",), "sampling.decision_wait": ("decision_wait",)},
        live=frozenset({"sampling.keep", "sampling.decision_wait", "sampling.decision_timeout"}),
    ),
    Section("sampling", "tollspan.processor.sample.file:SamplingSettings"),
    Section(
        "budget",
        "tollspan.processor.sample.budget:BudgetSettings",
        names={
            "budget": "sampling.budget",
            "tenants": "sampling.tenant_budgets",
            "surge": "sampling.surge",
            "retention_s": "sampling.retention",
        },
    ),
    Section("receive", "tollspan.processor.intake:ReceiveSettings"),
    Section("receive.grpc", "tollspan.processor.receive:GrpcSettings"),
    Section("receive.http", "tollspan.processor.receive_http:HttpSettings"),
    Section("log", "tollspan.processor.logs:LogSettings", live=frozenset({"log.level", "log.format", "log.repeat"})),
    Section("quarantine", "tollspan.processor.quarantine:QuarantineLimits"),
    Section("recent", "tollspan.processor.recent:RecentSettings"),
    Section("forward", "tollspan.processor.forward.settings:Endpoint"),
    Section(
        "forwarding",
        "tollspan.processor.forward.settings:Forwarding",
        names={"endpoints": "forward.endpoints", "drain_s": "forward.drain"},
    ),
    Section("exporter", "tollspan.processor.exporter:ExporterSettings"),
    Section("telemetry", "tollspan.processor.telemetry:TelemetrySettings"),
    Section("shutdown", "tollspan.processor.config:ShutdownSettings", live=frozenset({"shutdown.grace"})),
)
"""Every section there is."""

OTHERS: Final = frozenset(
    PREFIX + name
    for name in (
        "ANTHROPIC_NATIVE_SPANS", "CAPACITY", "CAPACITY_SHARE", "CLIENT_COST", "CLIENT_METRICS", "CONFIG", "DATA_DIR",
        "ESTIMATE_USAGE", "FEAST_REMOTE", "FINGERPRINT_KEY", "NETWORK", "OPENAI_PROVIDERS", "OPENAI_STREAM_USAGE",
        "PEERS", "PLACES", "PROVIDERS", "STREAM_USAGE", "TOKEN", "TORCH_TRAINING",
    )
)  # fmt: skip
"""Variables that are the instrumentation's, or of single commands."""


def listed() -> list[dict[str, object]]:
    """A row for each setting, for ``--list-settings`` and documents."""
    return [
        {
            "setting": each.name,
            "takes": describe(each.hint, each.field),
            "default": _text(each.shown(each.default)),
            "variable": each.variable,
            "changes by": "SIGHUP" if each.live else "restart",
            "what": each.help,
        }
        for each in sorted(settings(), key=lambda each: each.name.split(".")[:-1])
    ]


def settings(sections: Iterable[str] | None = None) -> list[Setting]:
    """All settings, or those of some sections (by the name in `SECTIONS`)."""
    chosen = None if sections is None else set(sections)
    return [each for section in SECTIONS if chosen is None or section.name in chosen for each in settings_of(section)]


class Value(typing.NamedTuple):
    """What a setting is, and where that was said."""

    value: Any
    where: str


DEFAULT: Final = "default"


class Config:
    """An effective configuration; see `load`.

    Attributes:
        values: setting → value and place.
        file: the file that was read, if one was.
        warnings: what is odd and no mistake.
    """

    def __init__(
        self, found: Mapping[str, Value], parts: Mapping[str, Any], all_: list[Setting], file: Path | None
    ) -> None:
        self.values = dict(found)
        self.settings = all_
        self.file = file
        self.warnings: list[str] = []
        self._parts = dict(parts)

    def get(self, kind: type[T]) -> T:
        """The section of a type.

        Raises:
            KeyError: `load` was not asked for it.
        """
        return typing.cast("T", self._parts[f"{kind.__module__}:{kind.__qualname__}"])

    def where(self, name: str) -> str:
        """Where a setting's value was given: ``tollspan.yaml:4``, ``TOLLSPAN_KEEP``, ``--keep`` or ``default``."""
        return self.values[name].where

    def as_yaml(self) -> str:
        """The whole configuration as a file that would give the same again, with the place of each value.

        Secrets are hidden: such a value has to be written in again.
        """
        lines: list[str] = []
        opened: list[str] = []
        for setting in sorted(self.settings, key=lambda each: each.name.split(".")[:-1]):
            *sections, last = setting.name.split(".")
            if sections != opened:
                lines += [
                    f"{'  ' * depth}{name}:"
                    for depth, name in enumerate(sections)
                    if opened[: depth + 1] != sections[: depth + 1]
                ]
                opened = sections
            value, where = self.values[setting.name]
            shown = setting.shown(value)
            text = "off" if shown is None else _flow(shown)
            line = f"{'  ' * len(sections)}{last}: {text}"
            lines.append(f"{line:<48}  # {where}")
        return "\n".join(lines) + "\n"

    def take(self, other: Config, names: Iterable[str]) -> None:
        """Let settings be as in another configuration: those that a reload has made to hold."""
        self.values |= {name: other.values[name] for name in names}

    def changes(self, other: Config) -> list[tuple[Setting, Any, Any]]:
        """(setting, value here, value there) where another configuration of the same settings differs."""
        return [
            (each, self.values[each.name].value, other.values[each.name].value)
            for each in self.settings
            if self.values[each.name].value != other.values[each.name].value
        ]


def _flow(value: object) -> str:
    """YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.rstrip("\n").removesuffix("...").rstrip()


def _text(value: object) -> str:
    return "off" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def load(
    file: Path | str | None = None,
    *,
    flags: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
    sections: Iterable[str] | None = None,
) -> Config:
    """The effective configuration.

    Args:
        file: YAML; None for the one that ``TOLLSPAN_CONFIG`` names, if any.
        flags: setting's or alias's name → text, from the command line.
        environment: of this process when None.
        sections: only these (names of `SECTIONS`); their modules alone are imported. What a file says to others is
            then not looked at.

    Raises:
        ConfigError: with a line for each mistake.
    """
    env = os.environ if environment is None else environment
    everything = sections is None
    known = settings(sections)
    problems: list[str] = []
    warnings: list[str] = []
    path = Path(file) if file else Path(env[FILE]) if env.get(FILE) else None
    sources = [
        {name: Given(text, flag(name)) for name, text in (flags or {}).items()},
        from_environment(known, env, OTHERS if everything else None, problems, warnings),
        from_file(known, path, problems, strict=everything) if path is not None else {},
    ]
    found: dict[str, Value] = {}
    wrong: set[str] = set()
    for setting in known:
        given = first_given(setting, sources, problems)
        if given is None:
            found[setting.name] = Value(setting.default, DEFAULT)
            continue
        try:
            found[setting.name] = Value(read(setting.hint, setting.field, given), given.where)
        except Problem as error:
            problems.append(f"{error.where or given.where}: {setting.name} {masked(str(error))}")
            wrong.add(setting.section.where)
    parts: dict[str, Any] = {}
    for section in dict.fromkeys(setting.section.where for setting in known):
        if section not in wrong:
            parts |= _part(section, [each for each in known if each.section.where == section], found, problems)
    if problems:
        raise ConfigError(_listed(problems))
    config = Config(found, parts, known, path)
    config.warnings = warnings
    return config


def _listed(problems: list[str]) -> str:
    unique = list(dict.fromkeys(problems))
    if len(unique) == 1:
        return unique[0] if unique[0].endswith("?") else f"{unique[0]}."
    return f"{len(unique)} settings cannot be used:\n" + "\n".join(f"  {each}" for each in unique)


def _part(where: str, members: list[Setting], found: Mapping[str, Value], problems: list[str]) -> dict[str, Any]:
    """A section's dataclass, where its values go together."""
    kind = members[0].section.load()
    try:
        return {where: kind(**{each.field: found[each.name].value for each in members})}
    except (ValueError, TollspanError) as error:
        told = [found[each.name].where for each in members if found[each.name].where != DEFAULT]
        name = members[0].section.name or "settings"
        problems.append(f"{', '.join(dict.fromkeys(told)) or DEFAULT}: {name}: {str(error).rstrip('.')}")
        return {}


def runtime_config(config: Config) -> RuntimeConfig:
    """What a `Runtime` is made from."""
    from tollspan.processor.forward.settings import Endpoint, Forwarding
    from tollspan.processor.pipeline import Settings
    from tollspan.processor.quarantine import QuarantineLimits
    from tollspan.processor.recent import RecentSettings
    from tollspan.processor.runtime import RuntimeConfig
    from tollspan.processor.sample.budget import BudgetSettings
    from tollspan.processor.sample.file import SamplingSettings

    places = config.get(Places)
    return RuntimeConfig(
        store=places.store,
        prices=places.prices,
        journal=places.journal,
        settings=config.get(Settings),
        sampling=config.get(SamplingSettings),
        budget=config.get(BudgetSettings),
        journal_limits=config.get(JournalLimits),
        drain_s=config.get(ShutdownSettings).drain_s,
        quarantine=config.get(QuarantineLimits),
        recent=config.get(RecentSettings),
        forward=config.get(Endpoint),
        forwarding=config.get(Forwarding),
    )


RUNTIME: Final = (
    "", "journal", "pipeline", "sampling", "budget", "quarantine", "recent", "forward", "forwarding", "shutdown"
)  # fmt: skip
"""Sections that `runtime_config` asks for: all that the drop-in exporter reads."""


def service_config(config: Config) -> ServiceConfig:
    """What a `Service` is made from."""
    from tollspan.processor.intake import ReceiveSettings
    from tollspan.processor.receive import GrpcSettings
    from tollspan.processor.receive_http import HttpSettings
    from tollspan.processor.service import ServiceConfig
    from tollspan.processor.telemetry import TelemetrySettings
    from tollspan.processor.tls import TlsFiles

    places, tls = config.get(Places), config.get(TlsSettings)
    return ServiceConfig(
        runtime=runtime_config(config),
        listen=places.listen,
        http=places.http,
        tls=TlsFiles(tls.cert, tls.key, tls.client_ca) if tls.cert is not None and tls.key is not None else None,
        senders=places.senders,
        readers=places.readers,
        sql=places.sql,
        page=places.page,
        page_anywhere=places.page == Places().page,
        insecure_listen=places.insecure_listen,
        grace_s=config.get(ShutdownSettings).grace_s,
        telemetry=config.get(TelemetrySettings),
        receive=config.get(ReceiveSettings),
        grpc=config.get(GrpcSettings),
        http_settings=config.get(HttpSettings),
    )
