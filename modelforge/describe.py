"""`describe`: the reference of every key, taken from the sections; `json_schema`: the same for editors."""

import difflib
import json
from collections.abc import Iterator

from pydantic.json_schema import JsonSchemaValue
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelforge.configuration.schema import Kind, choices, fields_of, tables, unit_of
from modelforge.configuration.wording import in_words
from modelforge.configuration.writing import toml_value
from modelforge.errors import UserError
from modelforge.experiment import Experiment
from modelforge.section import Section

TablePath = tuple[str, ...]


def describe(section_path: str | None = None, *, root: type[Section] = Experiment) -> RenderableType:
    """Type, default, unit and meaning of the keys of a table and those below it, of one choice, or of one key.

    `training`, `training.lr_scheduler`, `potential.painn` and `training.batch_size` are such paths; none means all.
    """
    path = tuple(section_path.split(".")) if section_path else ()
    # What all choices of a table have in common, such as the repulsion of any potential, is shown once.
    known = list(dict.fromkeys((table, section) for table, section in tables(Kind(root)) if table))
    below = [(table, section) for table, section in known if table[: len(path)] == path]
    chosen = [(table, section) for table, section in known if path and (*table, _choice(section)) == path]
    if below or chosen:
        return Group(*(part for table, section in below or chosen for part in _described(table, section)))
    holders = [section for table, section in known if table == path[:-1] and path[-1] in section.model_fields]
    if holders:
        return _keys(holders[0], (path[-1],))
    raise UserError(f"modelforge describe {section_path}: {_unknown(known, section_path or '')}")


def json_schema(root: type[Section] = Experiment) -> JsonSchemaValue:
    """A JSON schema of the TOML, for completion and checks in editors; units are in `x-unit`."""
    schema = root.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "modelforge experiment"}


def json_schema_text() -> str:
    """The JSON schema of an experiment as text."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False)


def _unknown(known: list[tuple[TablePath, type[Section]]], given: str) -> str:
    names = dict.fromkeys(".".join(table) for table, _ in known)
    keys = {f"{'.'.join(table)}.{key}": None for table, section in known for key in section.model_fields}
    near = difflib.get_close_matches(given, names | keys, n=1)
    tops = ", ".join(name for name in names if "." not in name)
    return "no such table or key" + (f" (did you mean {near[0]}?)" if near else f" (tables: {tops})")


def _choice(section: type[Section]) -> str:
    """The name by which a union knows the section; empty where it is no choice."""
    field = section.model_fields.get("name")
    names = getattr(field.annotation, "__args__", ()) if field else ()
    return str(names[0]) if names else ""


def _described(table: TablePath, section: type[Section]) -> Iterator[RenderableType]:
    name = _choice(section)
    title = Text(f"[{'.'.join(table)}]", style="bold")
    yield title.append(f" name = {toml_value(name)}" if name else "")
    yield Text(_one_line(section.__doc__))
    keys = tuple(key for key in section.model_fields if key != "name" or not name)
    yield Padding(_keys(section, keys), (0, 0, 1, 2))


def _keys(section: type[Section], names: TablePath) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="cyan")
    grid.add_column()
    for name in names:
        field, kind = section.model_fields[name], fields_of(section)[name]
        meaning = _one_line(field.description or (kind.section.__doc__ if kind.section else None))
        grid.add_row(name, Group(Text(_facts(section, name, kind), style="dim"), *([Text(meaning)] if meaning else [])))
    return grid


def _facts(section: type[Section], name: str, kind: Kind) -> str:
    """Type, unit and default of a key."""
    unit = unit_of(kind)
    options = ", ".join(choices(kind))
    facts = [in_words(kind), f"in {unit}" if unit else "", f"one of {options}" if options else ""]
    return "; ".join(fact for fact in (*facts, _default(section, name)) if fact)


def _default(section: type[Section], name: str) -> str:
    field = section.model_fields[name]
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None:
        return "not set by default"
    shown = _choice(type(default)) if isinstance(default, Section) else toml_value(default)
    return f"default {shown}" if shown else ""


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())
