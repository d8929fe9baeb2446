"""Writes the reference pages from the code: commands from Typer, settings from pydantic, presets from their table.

A page under `docs/` holds a line such as `<!-- generated: commands -->`, and `fill` puts Markdown in its place when the
site is built. What is generated is never committed, so it cannot differ from the code. Everything that is imported here
is free of torch.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from analysis.figures.registry import FIGURES
from ecdit_cli.app import app
from experiments.config.overrides import SHORT_FORMS
from experiments.config.presets import PRESETS, Preset
from experiments.config.routers import ALIASES, ROUTERS, routing_defaults
from experiments.config.schema import RunConfig
from experiments.config.values import accepted_by
from sweeps.cluster import Resources
from sweeps.devices import DEVICES
from sweeps.spec import load_spec, shipped_specs

CONTRIBUTING = Path(__file__).parents[2] / "CONTRIBUTING.md"
MARKER = re.compile(r"^<!-- generated: ([a-z-]+) -->$", flags=re.MULTILINE)


def fill(markdown: str) -> str:
    """Returns a page with the generated text in place of its markers. A `KeyError` names an unknown marker."""
    return MARKER.sub(lambda found: GENERATED[found[1]](), markdown)


# Commands


def commands() -> dict[str, Any]:
    """Returns every command by the words that call it, those of groups included: `data prepare`."""
    found: dict[str, Any] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {f"{name} {sub}": each for sub, each in inner.items()} if inner else {name: command}
    return found


def commands_page() -> str:
    """Returns a section for every command: its help, then its arguments and options."""
    return "\n\n".join(_command(name, command) for name, command in commands().items())


def _command(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=f"ecdit {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"## ecdit {name}", _code(f"ecdit {name} {usage}", "text"), _help(command.help)]
    for kind, title in (("argument", "Argument"), ("option", "Option")):
        records = [each.get_help_record(context) for each in command.params if each.param_type_name == kind]
        rows = [_parameter(*record) for record in records if record]
        parts += [_table([title, "Meaning"], rows)] if rows else []
    return "\n\n".join(parts)


def _help(text: str) -> str:
    """Returns the help of a command in Markdown; an example becomes a block that can be copied."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in text.split("\n\n")]
    examples = [re.match(r"Examples?: (.*)", paragraph) for paragraph in paragraphs]
    return "\n\n".join(
        _code(example[1], "bash") if example else _escaped(paragraph)
        for paragraph, example in zip(paragraphs, examples, strict=True)
    )


def _parameter(name: str, text: str) -> list[str]:
    """Returns the cells of one argument or option. Typer writes its default and limits in brackets at the end."""
    meaning, opening, brackets = text.partition("  [")
    details = f" ({brackets.removesuffix(']').replace('<=x<=', ' to ')})" if opening else ""
    return [f"`{_shown(name)}`", _escaped(meaning + details)]


def _shown(name: str) -> str:
    """Returns the name of a parameter with a word for its type where Typer writes the type of Python."""
    if not name.startswith("--"):
        return name.partition(" <")[0]
    for kind, word in {"int range": "N", "float range": "NUMBER", "list[int]": "N", "str": "TEXT"}.items():
        name = name.replace(f"<{kind}>", word)
    return name


# Settings


def settings_page() -> str:
    """Returns a table of settings for each section of a run's settings."""
    resolved = RunConfig.model_validate({"model": {}, "routing": {}, "optim": {}})
    single = {key: field for key, field in RunConfig.model_fields.items() if not _section(field)}
    parts = ["## seed", _settings_table("", single, resolved)] if single else []
    for key, field in RunConfig.model_fields.items():
        section = _section(field)
        if section:
            table = _settings_table(f"{key}.", section.model_fields, getattr(resolved, key))
            parts += [f"## {key}", _escaped(inspect.cleandoc(section.__doc__ or "")), table]
    return "\n\n".join(parts)


def settings() -> Iterator[tuple[str, FieldInfo]]:
    """Yields every dotted setting and its field."""
    for key, field in RunConfig.model_fields.items():
        section = _section(field)
        leaves = section.model_fields if section else {}
        yield from [(f"{key}.{name}", leaf) for name, leaf in leaves.items()] or [(key, field)]


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _settings_table(prefix: str, fields: dict[str, FieldInfo], values: Any) -> str:
    from_preset = {f"model.{name}" for name in Preset._fields} | {"optim.learning_rate"}
    from_router = {f"routing.{name}" for name in _router_settings()}
    rows = []
    for name, field in fields.items():
        key, default = f"{prefix}{name}", f"`{getattr(values, name)}`"
        source = " (preset)" if key in from_preset else " (router)" if key in from_router else ""
        rows.append([f"`{key}`", *_accepted(field), f"{default}{source}", _escaped(field.description or "")])
    return _table(["Setting", "Accepts", "Limits", "Default", "Meaning"], rows)


def _accepted(field: FieldInfo) -> list[str]:
    """Returns what values a field accepts, and the limits of its numbers."""
    return [_escaped(str(accepted_by(field.annotation, field.metadata))), ", ".join(_limits(field))]


def _limits(field: FieldInfo) -> list[str]:
    """Returns the limits of a field's number, wherever they stand in a union of types."""
    signs = {"gt": "above", "ge": "from", "lt": "below", "le": "to"}
    found: dict[str, str] = {}
    for each in _constraints(field):
        for name, sign in signs.items():
            limit = getattr(each, name, None)
            if limit is not None:
                found[sign] = f"{sign} {_number(limit)}"
        function = getattr(each, "func", None)  # the validator of a least value, which replaces "above 0"
        if function is not None and (least := inspect.getclosurevars(function).nonlocals.get("least")) is not None:
            found.pop("above", None)
            found = {"from": f"from {_number(least)}", **found}
    return list(found.values())


def _constraints(field: FieldInfo) -> Iterator[Any]:
    yield from field.metadata
    kinds: list[Any] = [field.annotation]
    while kinds:
        kind = kinds.pop()
        arguments = get_args(kind)
        for each in getattr(kind, "__metadata__", ()):
            yield from each.metadata if isinstance(each, FieldInfo) else [each]
        kinds += [each for each in arguments if get_args(each)]


def _number(value: float) -> str:
    """Returns a limit as a person writes it: 4,096, 1e+12, or 2^63 - 1."""
    if isinstance(value, int) and value + 1 >= 2**40 and (value + 1).bit_count() == 1:
        return f"2^{(value + 1).bit_length() - 1} - 1"
    return f"{value:,}" if isinstance(value, int) and value < 10**9 else re.sub(r"e([-+])0", r"e\1", f"{value:g}")


# Tables of presets, routers, devices, cluster files, sweeps and figures


def presets_table() -> str:
    """Returns the settings that each preset fixes."""
    return _table(["Preset", *Preset._fields], [[f"`{name}`", *map(str, row)] for name, row in PRESETS.items()])


def routers_table() -> str:
    """Returns the default settings of each router."""
    defaults = {name: routing_defaults({"name": name}) for name in ROUTERS}
    keys = _router_settings()
    rows = [
        [f"`{name}`", *("–" if row[key] is None else f"`{row[key]}`" for key in keys)] for name, row in defaults.items()
    ]
    for row in rows:
        further = ROUTERS[row[0].strip("`")].settings
        row.append("<br>".join(f"`{key}={value}`" for key, value in further.items()) or "–")
    return _table(["Router", *keys, "further settings"], rows)


RULES = {
    "dense": "nobody: one feed-forward serves all tokens",
    "tokens": "every token takes its `top_k` best experts",
    "experts": "every expert takes its best tokens, as many as it has slots",
    "pairs": "pairs of token and expert compete with all others",
    "thresholds": "an expert takes every token whose score reaches its threshold",
    "fixed": "nothing is learned: the noise level, the position or chance decides",
    "soft": "every slot is a mean of all tokens",
    "blocks": "the noise level chooses what changes the input of a whole block",
}
"""Who chooses, by the family of a router's rule."""


def rules_table() -> str:
    """Returns who chooses in each router, with its name in figures and its source."""
    rows = [[f"`{name}`", row.label, RULES[row.rule], row.source] for name, row in ROUTERS.items()]
    aliases = ", ".join(f"`{alias}` is `{name}`" for alias, name in ALIASES.items())
    return f"{_table(['Router', 'In figures', 'Who chooses', 'Source'], rows)}\n\nNames of papers work too: {aliases}."


def _router_settings() -> list[str]:
    """Returns the settings under `routing.` that at least one router has a default for."""
    defaults = [routing_defaults({"name": name}) for name in ROUTERS]
    return [key for key in defaults[0] if key != "name" and any(row[key] is not None for row in defaults)]


def short_forms_table() -> str:
    """Returns the abbreviations of settings."""
    return _table(["Short form", "Setting"], [[f"`{short}`", f"`{full}`"] for short, full in SHORT_FORMS.items()])


def devices_table() -> str:
    """Returns the accelerators that a plan can be priced on."""
    rows = [
        [f"`{name}`", *("–" if value is None else f"{value:g}" for value in device)] for name, device in DEVICES.items()
    ]
    headings = ["Device", "Memory, GB", "Peak bf16, TFLOP/s", "Within a node, GB/s", "Between nodes, GB/s"]
    return _table(headings, rows)


def cluster_table() -> str:
    """Returns the keys of a cluster file."""
    rows = []
    for name, field in Resources.model_fields.items():
        default = "required" if field.default is PydanticUndefined else f"`{field.default}`"
        rows.append([f"`{name}`", ", ".join(_limits(field)), default, _escaped(field.description or "")])
    return _table(["Key", "Limits", "Default", "Meaning"], rows)


def sweeps_table() -> str:
    """Returns the sweeps that ship with the package."""
    rows = [[f"`{name}`", _escaped(load_spec(name).description or "")] for name in shipped_specs()]
    return _table(["Sweep", "What it runs"], rows)


def figures_table() -> str:
    """Returns every figure with a link to its section."""
    rows = [[f"[`{figure.name}`](#{figure.name})", _escaped(figure.description)] for figure in FIGURES.values()]
    return _table(["Figure", "What it shows"], rows)


def contributing() -> str:
    """Returns the text of CONTRIBUTING.md without its title."""
    return CONTRIBUTING.read_text().partition("\n")[2]


GENERATED: dict[str, Callable[[], str]] = {
    "commands": commands_page,
    "settings": settings_page,
    "presets": presets_table,
    "routers": routers_table,
    "rules": rules_table,
    "short-forms": short_forms_table,
    "devices": devices_table,
    "cluster": cluster_table,
    "sweeps": sweeps_table,
    "figures": figures_table,
    "contributing": contributing,
}
"""What each marker stands for."""


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table. Names in its head may break at an underscore, so that many columns fit a page."""
    heads = [heading.replace("_", "_<wbr>") for heading in headings]
    return "\n".join("| " + " | ".join(line) + " |" for line in [heads, ["---"] * len(heads), *rows])


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text}\n```"


def _escaped(text: str) -> str:
    """Returns plain text for Markdown outside of code: `<`, `*` and `_` mean themselves."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([<*_|\[\]])", r"\\\1", part) for part in parts)
