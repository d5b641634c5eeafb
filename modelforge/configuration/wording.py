"""`in_words`: what a key may hold, in plain English, for errors and for the reference of every key."""

from collections.abc import Mapping
from typing import Literal, get_args, get_origin

import annotated_types as bounds

from modelforge.configuration.schema import Kind, is_path, kind_of

_NOUNS = {
    float: ("a number", "numbers"),
    int: ("a whole number", "whole numbers"),
    str: ("a text", "texts"),
}


def in_words(kind: Kind, *, many: bool = False) -> str:
    """What may stand here: "a number greater than 0", "'auto' or a list of whole numbers of at least 1"."""
    return any_of(_options(kind, many))


def any_of(options: list[str]) -> str:
    """ "a, b or c"."""
    unique = list(dict.fromkeys(options))
    return " or ".join([", ".join(unique[:-1]), unique[-1]] if len(unique) > 1 else unique)


def _options(kind: Kind, many: bool) -> list[str]:
    if kind.alternatives:
        nested = [_options(option, many) for option in kind.alternatives]
        return list(dict.fromkeys(option for options in nested for option in options))
    if get_origin(kind.plain) is Literal:
        return [_literal(value) for value in get_args(kind.plain)]
    if kind.plain is bool:
        return ["true", "false"]
    return [" ".join(part for part in (_noun(kind, many), _range(kind)) if part)]


def _literal(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _noun(kind: Kind, many: bool) -> str:
    origin, arguments = get_origin(kind.plain), get_args(kind.plain)
    if kind.section is not None or origin in (dict, Mapping):
        entries = f" of {in_words(kind_of(arguments[1]), many=True)}" if origin else ""
        return ("tables" if many else "a table") + entries
    if origin in (tuple, list, set, frozenset):
        return ("lists of " if many else "a list of ") + _elements(arguments)
    if is_path(kind):
        return "paths" if many else "a path"
    known = (words for plain, words in _NOUNS.items() if plain is kind.plain)
    return next(known, ("a value", "values"))[many]


def _elements(arguments: tuple[object, ...]) -> str:
    elements = [kind_of(argument) for argument in arguments if argument is not Ellipsis]
    if Ellipsis in arguments or len(arguments) == 1:
        return in_words(elements[0], many=True)
    alike = len({in_words(element) for element in elements}) == 1
    first = f"{len(elements)} {in_words(elements[0], many=True)}"
    return first if alike else "(" + ", ".join(in_words(element) for element in elements) + ")"


def _range(kind: Kind) -> str:
    return " and ".join(phrase for item in kind.metadata if (phrase := _bound(item)) and not is_path(kind))


def _bound(item: object) -> str:
    match item:
        case bounds.Gt(gt=limit):
            return f"greater than {limit}"
        case bounds.Ge(ge=limit):
            return f"of at least {limit}"
        case bounds.Lt(lt=limit):
            return f"less than {limit}"
        case bounds.Le(le=limit):
            return f"of at most {limit}"
        case bounds.MultipleOf(multiple_of=step):
            return f"that is a multiple of {step}"
        case _:
            return ""
