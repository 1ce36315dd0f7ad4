"""Where settings are given: the environment, and a YAML file.

In: the settings there are. Out: what each place says, by the setting's name, as `Given`; what is wrong goes into a list
of sentences, so that all of it can be said at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Set
from pathlib import Path

import yaml

from tollspan.processor.sections import PREFIX, Setting, variable
from tollspan.processor.values import Given, from_node, nearest


def first_given(setting: Setting, sources: list[dict[str, Given]], problems: list[str]) -> Given | None:
    """What the first source that says anything says."""
    for source in sources:
        said = [source[name] for name in (setting.name, *setting.aliases) if name in source]
        if len(said) > 1:
            problems.append(f"{said[1].where}: {setting.name} is given twice, first by {said[0].where}")
        if said:
            return said[0]
    return None


def from_environment(
    known: list[Setting], env: Mapping[str, str], others: Set[str] | None, problems: list[str], warnings: list[str]
) -> dict[str, Given]:
    """Settings of the environment. An empty variable says nothing, as OpenTelemetry has it.

    Args:
        known: the settings there are.
        env: the environment.
        others: variables with our prefix that are no settings; None: what is not known is nobody's business here.
        problems, warnings: get what is wrong, and what is only odd.
    """
    by_variable = {variable(name): name for each in known for name in (each.name, *each.aliases)}
    files = {f"{each.variable}_FILE": each for each in known if each.secret}
    found: dict[str, Given] = {}
    for key in sorted(env):
        text = env[key]
        if not key.startswith(PREFIX) or not text.strip():
            continue
        if key in by_variable:
            found[by_variable[key]] = Given(text, key)
        elif key in files:
            try:
                found[files[key].name] = Given(Path(text).expanduser().read_text().strip(), key)
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{key}: the file {text!r} cannot be read: {error}")
        elif others is not None and key not in others and not key.startswith(f"{PREFIX}TEST_"):
            # The instrumentation has variables of its own, so only what looks like one of ours is a mistake.
            near = difflib.get_close_matches(key, by_variable, n=1, cutoff=0.85)
            if near:
                problems.append(f"{key} is no setting; did you mean {near[0]}?")
            else:
                warnings.append(f"{key} in the environment is no setting of the processor.")
    return found


def from_file(known: list[Setting], path: Path, problems: list[str], *, strict: bool) -> dict[str, Given]:
    """Settings of a YAML file.

    Args:
        strict: a name that is no setting is a mistake.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        problems.append(f"{path}: the file cannot be read: {(error.strerror or str(error)).lower()}")
        return {}
    except UnicodeDecodeError as error:
        problems.append(f"{path}: no UTF-8 text: {error}")
        return {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problems.append(f"{path}:{mark.line + 1 if mark else 1}: no YAML: {error.problem or error.context}")
        return {}
    except yaml.YAMLError as error:
        problems.append(f"{path}: no YAML: {error}")
        return {}
    if node is None:
        return {}
    tree = from_node(node, lambda each: f"{path.name}:{each.start_mark.line + 1}", path.absolute().parent, problems)
    if not isinstance(tree.value, dict):
        problems.append(f"{tree.where}: the file has to be a mapping, such as 'store: chdb://'")
        return {}
    found: dict[str, Given] = {}
    names = {name: each for each in known for name in (each.name, *each.aliases)}
    _flatten(tree.value, "", names, found, problems, strict)
    return found


def _flatten(
    tree: Mapping[str, Given],
    above: str,
    names: Mapping[str, Setting],
    found: dict[str, Given],
    problems: list[str],
    strict: bool,
) -> None:
    """Settings of a mapping by their dotted names; ``journal.max_bytes: 1`` is as good as nested."""
    for key, given in tree.items():
        name = f"{above}{key}"
        inside = any(each.startswith(f"{name}.") for each in names)
        if name in names and not (inside and isinstance(given.value, dict)):
            found[name] = given
        elif inside:
            if isinstance(given.value, dict):
                _flatten(given.value, f"{name}.", names, found, problems, strict)
            elif given.value is not None:
                members = ", ".join(each.removeprefix(f"{name}.") for each in names if each.startswith(f"{name}."))
                problems.append(f"{given.where}: {name} has to be a mapping of {members}")
        elif strict:
            problems.append(f"{given.where}: {name} is no setting{nearest(name, names)}")
