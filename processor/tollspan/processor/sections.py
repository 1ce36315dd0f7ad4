"""Sections and settings: how the fields of dataclasses become names that a person writes.

In: `Section`s, which name dataclasses. Out: a `Setting` for each of their fields, with its names in YAML, in the
environment and on the command line, and its help from the class's docstring. `config` has the sections there are.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tollspan.processor.values import Secret, bare, has_default, setting_name, show

PREFIX: Final = "TOLLSPAN_"


@dataclass(frozen=True, slots=True)
class Section:
    """A dataclass whose fields are settings.

    Attributes:
        name: what stands before its fields' names; '' for none.
        where: ``module:class``.
        names: field → whole name of its setting, where that is not ``<section>.<field>``.
        aliases: setting → further names that it has; one with a dot or without is as good as another.
        live: settings that SIGHUP changes.
    """

    name: str
    where: str
    names: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    live: frozenset[str] = frozenset()

    def load(self) -> type[Any]:
        """The dataclass."""
        module, _, name = self.where.partition(":")
        return typing.cast("type[Any]", getattr(importlib.import_module(module), name))


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting.

    Attributes:
        name: dotted, as in YAML.
        section, field: where its value goes.
        hint: the field's type; default: what it is when nobody says.
        aliases: further names.
        help: one sentence.
        live: SIGHUP changes it.
    """

    name: str
    section: Section
    field: str
    hint: Any
    default: Any
    aliases: tuple[str, ...]
    help: str
    live: bool

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return variable(self.name)

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return flag(self.name)

    @property
    def secret(self) -> bool:
        """Whether it may hold one: ``<VARIABLE>_FILE`` then names a file to read it from."""
        return self.name == "store" or any(isinstance(mark, Secret) for mark in bare(self.hint).marks)

    @property
    def boolean(self) -> bool:
        """Whether its flag needs no value."""
        return bare(self.hint).type is bool

    def shown(self, value: Any) -> Any:
        """A value fit for YAML and people."""
        return show(self.hint, self.field, value)


def variable(name: str) -> str:
    """``journal.max_bytes`` → ``TOLLSPAN_JOURNAL_MAX_BYTES``."""
    return PREFIX + name.replace(".", "_").upper()


def flag(name: str) -> str:
    """``journal.max_bytes`` → ``--journal-max-bytes``."""
    return "--" + name.replace(".", "-").replace("_", "-")


def settings_of(section: Section) -> Iterable[Setting]:
    """The settings of a section; its module is imported."""
    kind = section.load()
    hints = typing.get_type_hints(kind, include_extras=True)
    helps = attribute_docs(kind)
    for each in dataclasses.fields(kind):
        hint = hints[each.name]
        own = setting_name(each.name, hint)
        if not has_default(each):
            raise TypeError(f"{kind.__name__}.{each.name} has no default: a setting needs one")
        make: Any = each.default_factory
        default = each.default if each.default is not dataclasses.MISSING else make()
        name = section.names.get(each.name) or (f"{section.name}.{own}" if section.name else own)
        yield Setting(
            name,
            section,
            each.name,
            hint,
            default,
            section.aliases.get(name, ()),
            helps.get(each.name, ""),
            name in section.live,
        )


def attribute_docs(kind: type[Any]) -> dict[str, str]:
    """Field → what the class's docstring says of it under ``Attributes:``; several may share a line."""
    text = inspect.cleandoc(kind.__doc__ or "")
    found: dict[str, str] = {}
    names: list[str] = []
    _, _, block = text.partition("Attributes")
    for line in block.splitlines()[1:]:
        entry = re.fullmatch(r"    (\w[\w, ]*?): (.*)", line)
        if entry:
            names = [name.strip() for name in entry[1].split(",")]
            found |= dict.fromkeys(names, entry[2].strip())
        elif line.startswith("        ") and names:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
        elif line.strip():
            break
    return {name: text.rstrip(".").replace("``", "").replace("`", "") for name, text in found.items()}
