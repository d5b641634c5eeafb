"""`explain`: a mistake in a section in plain words: what was expected, what was found, how to mend it."""

import difflib
from dataclasses import dataclass
from typing import get_args, get_origin

from modelforge.configuration.document import KeyPath
from modelforge.configuration.mistakes import Mistake, kind_at, value_at
from modelforge.configuration.schema import (
    Kind,
    child,
    choices,
    discriminator_of,
    fields_of,
    is_list,
    literals,
    narrow_fully,
    sections_in,
    tables,
)
from modelforge.configuration.wording import any_of, in_words
from modelforge.configuration.writing import dotted, toml_value

_LIMITS = {
    "greater_than": "must be greater than {}",
    "greater_than_equal": "must be at least {}",
    "less_than": "must be less than {}",
    "less_than_equal": "must be at most {}",
    "multiple_of": "must be a multiple of {}",
    "too_short": "must have at least {} entries",
    "too_long": "must have at most {} entries",
    "string_too_short": "must have at least {} characters",
    "string_too_long": "must have at most {} characters",
    "string_pattern_mismatch": "must match the pattern {}",
}


@dataclass(frozen=True)
class Explanation:
    """A key and what is wrong with it."""

    path: KeyPath
    message: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


def explain(mistake: Mistake, root: Kind, values: object) -> Explanation:
    """Say what is wrong; `root` and `values` serve to look for where an unknown key belongs."""
    discriminator = discriminator_of(mistake.kind) if mistake.kind else ""
    match mistake.type:
        case "check":
            return Explanation(mistake.path, mistake.message)
        case "extra_forbidden":
            return Explanation(mistake.path, _unknown_key(mistake, root, values))
        case "missing":
            return Explanation(mistake.path, _missing(mistake, root, values))
        case "union_tag_not_found":
            return Explanation((*mistake.path, discriminator), f"missing; choose one of: {_listed(mistake.kind)}")
        case "union_tag_invalid":
            given = value_at(mistake.value, (discriminator,))
            return Explanation((*mistake.path, discriminator), _unknown_choice(given, list(_choices(mistake.kind))))
        case "finite_number":
            return Explanation(mistake.path, f"must be a finite number{_got(mistake.value)}")
        case _ if mistake.type in _LIMITS:
            return Explanation(mistake.path, _limit(mistake))
        case _:
            return Explanation(mistake.path, _wrong_type(mistake))


def _choices(kind: Kind | None) -> dict[str, object]:
    return dict(choices(kind)) if kind else {}


def _listed(kind: Kind | None) -> str:
    return ", ".join(_choices(kind))


def _limit(mistake: Mistake) -> str:
    if mistake.kind and get_origin(mistake.kind.plain) is tuple and Ellipsis not in get_args(mistake.kind.plain):
        return _wrong_type(mistake)
    if mistake.type in ("string_too_short", "too_short") and mistake.limit == "1":
        return "must not be empty"
    return _LIMITS[mistake.type].format(mistake.limit) + _got(mistake.value)


def _got(value: object) -> str:
    if isinstance(value, dict):
        return " (got a table)"
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return " (got a list of tables)"
    text = repr(value) if isinstance(value, str) else toml_value(value) if _is_plain(value) else str(value)
    return f" (got {text if len(text) <= 60 else text[:57] + '...'})"


def _is_plain(value: object) -> bool:
    return isinstance(value, (bool, int, float, list))


def _unknown_choice(given: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(given), known, n=1)
    question = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown choice {given!r} ({question}choices: {', '.join(known)})"


def _missing(mistake: Mistake, root: Kind, values: object) -> str:
    kind = mistake.kind
    assert kind is not None, "only known keys can be missing"
    if choices(kind):
        return f"missing; add a table [{dotted(mistake.path)}] with {discriminator_of(kind)} = {_quoted(kind)}"
    if kind.section:
        required = [name for name, field in kind.section.model_fields.items() if field.is_required()]
        keys = f" with {' and '.join(required)}" if required else ""
        return f"missing; add a table [{dotted(mistake.path)}]{keys}"
    return f"missing; give {_meaning(mistake.path, root, values) or in_words(kind)}"


def _quoted(kind: Kind) -> str:
    return any_of([toml_value(name) for name in choices(kind)])


def _meaning(path: KeyPath, root: Kind, values: object) -> str:
    """The first sentence of a key's documentation, to go on in a sentence."""
    section = narrow_fully(kind_at(root, values, path[:-1]), value_at(values, path[:-1])).section
    text = (section and section.model_fields[str(path[-1])].description) or ""
    sentence = " ".join(text.split()).split(". ")[0].rstrip(".")
    return sentence if sentence[1:2].isupper() else sentence[:1].lower() + sentence[1:]


def _wrong_type(mistake: Mistake) -> str:
    kind, value = mistake.kind, mistake.value
    if kind is None:
        return mistake.message
    if choices(kind) or kind.section:
        return _no_table(mistake, kind)
    known = literals(kind)
    if mistake.type in ("literal_error", "enum") and isinstance(value, str) and all(isinstance(k, str) for k in known):
        return _unknown_choice(value, [str(item) for item in known])
    if value == "" and str in _plain_types(kind):
        return "must not be empty"
    return f"must be {in_words(kind)}{_got(value)}{_remedy(kind, value)}"


def _no_table(mistake: Mistake, kind: Kind) -> str:
    key, value = dotted(mistake.path), mistake.value
    if isinstance(value, str) and value in choices(kind):
        remedy = f"write [{key}] and below it {discriminator_of(kind)} = {toml_value(value)}"
    elif isinstance(value, list):
        remedy = f"write [{key}] in single brackets"
    else:
        remedy = f"write [{key}] and its keys below"
    return f"must be {in_words(kind)}{_got(value)}; {remedy}"


def _remedy(kind: Kind, value: object) -> str:
    """How to write the same value rightly, where that is plain to see."""
    wanted = _plain_types(kind)
    if isinstance(value, str) and wanted & {int, float} and _is_number(value):
        return "; drop the quotes"
    if isinstance(value, str) and bool in wanted and value.lower() in ("true", "false"):
        return f"; write {value.lower()}"
    if isinstance(value, float) and int in wanted and value.is_integer():
        return f"; write {int(value)}"
    if isinstance(value, (int, float)) and not isinstance(value, bool) and str in wanted:
        return f'; as a text: "{value}" (in a shell \'"{value}"\')'
    return f"; write [{toml_value(value)}]" if any(_is_element(value, option) for option in _options(kind)) else ""


def _is_element(value: object, kind: Kind) -> bool:
    """Whether the value would do in brackets."""
    element = child(kind, 0) if is_list(kind) and Ellipsis in get_args(kind.plain) else None
    return element is not None and type(value) in _plain_types(element)


def _options(kind: Kind) -> tuple[Kind, ...]:
    return kind.alternatives or (kind,)


def _plain_types(kind: Kind) -> set[object]:
    return {option.plain for option in _options(kind)}


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _unknown_key(mistake: Mistake, root: Kind, values: object) -> str:
    path = mistake.path
    hint = (
        _other_choice(path, root, values)
        or _other_table(path, root)
        or _other_name(path, root, values)
        or _near_key(path, root, values)
        or _near_elsewhere(path, root)
        or f"{f'modelforge describe {dotted(path[:-1])}'.rstrip()} lists the keys"
    )
    return f"unknown {'table' if isinstance(mistake.value, dict) else 'key'} ({hint})"


def _other_choice(path: KeyPath, root: Kind, values: object) -> str:
    """The key belongs to other choices of the same union."""
    kind, table, name = kind_at(root, values, path[:-1]), value_at(values, path[:-1]), str(path[-1])
    owners = [choice for choice, section in choices(kind).items() if name in section.model_fields]
    chosen = value_at(table, (discriminator_of(kind),))
    return f"{name} belongs to {any_of(owners)}, not {chosen}" if owners and chosen else ""


def _other_table(path: KeyPath, root: Kind) -> str:
    """The key belongs in other tables, if they are few."""
    name = str(path[-1])
    owners = dict.fromkeys(table for table, section in tables(root) if name in section.model_fields and table)
    return f"belongs in {any_of([f'[{dotted(owner)}]' for owner in owners])}" if 0 < len(owners) <= 3 else ""


def _other_name(path: KeyPath, root: Kind, values: object) -> str:
    """The key has this name in other packages."""
    table = narrow_fully(kind_at(root, values, path[:-1]), value_at(values, path[:-1]))
    found = [section.other_names[name] for section in sections_in(table) if (name := str(path[-1])) in section.other_names]
    return f"here it is {found[0]}" if found else ""


def _near_key(path: KeyPath, root: Kind, values: object) -> str:
    table = narrow_fully(kind_at(root, values, path[:-1]), value_at(values, path[:-1]))
    known = [name for section in sections_in(table) for name in section.model_fields]
    near = difflib.get_close_matches(str(path[-1]), known, n=1)
    return f"did you mean {near[0]}?" if near else ""


def _near_elsewhere(path: KeyPath, root: Kind) -> str:
    owners = {name: table for table, section in tables(root) for name in fields_of(section)}
    near = difflib.get_close_matches(str(path[-1]), owners, n=1, cutoff=0.75)
    return f"did you mean {near[0]} in [{dotted(owners[near[0]])}]?" if near and owners[near[0]] else ""
