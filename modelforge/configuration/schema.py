"""`Kind`: what a key of a section may hold, taken from its annotation.

Everything that looks at section classes rather than at values goes through here: the search for paths, the words of
errors, `modelforge describe`. A kind is either plain (one type) or a choice between alternatives; alternatives that are
sections with a `name` make a discriminated union.
"""

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from modelforge.section import IsPath, Section, Unit


@dataclass(frozen=True)
class Kind:
    """An annotation without its wrappers: one plain type, or several alternatives."""

    plain: object
    alternatives: tuple["Kind", ...] = ()
    metadata: tuple[object, ...] = ()
    optional: bool = False
    discriminator: str | None = None

    @property
    def section(self) -> type[Section] | None:
        """The section class, where the kind is a single one."""
        return self.plain if isinstance(self.plain, type) and issubclass(self.plain, Section) else None


def kind_of(annotation: object, metadata: tuple[object, ...] = (), discriminator: str | None = None) -> Kind:
    """Take an annotation apart."""
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        discriminator = discriminator or next((_discriminator(item) for item in more if _discriminator(item)), None)
        metadata = (*metadata, *_flat(more))
    if get_origin(annotation) not in (Union, types.UnionType):
        return Kind(annotation, (), metadata, discriminator=discriminator)
    members = [member for member in get_args(annotation) if member is not types.NoneType]
    optional = len(members) < len(get_args(annotation))
    if len(members) == 1:
        return replace(kind_of(members[0], metadata, discriminator), optional=True)
    return Kind(None, tuple(kind_of(member) for member in members), metadata, optional, discriminator)


def kind_of_field(field: FieldInfo) -> Kind:
    """The kind of a section's field."""
    return kind_of(field.annotation, _flat(field.metadata), _discriminator(field))


def fields_of(section: type[Section]) -> dict[str, Kind]:
    """The keys of a section."""
    return {name: kind_of_field(field) for name, field in section.model_fields.items()}


def child(kind: Kind, key: str | int) -> Kind | None:
    """The kind of an entry of a table or list; None where there is none."""
    if kind.section is not None:
        field = kind.section.model_fields.get(str(key))
        return kind_of_field(field) if field else None
    origin, arguments = get_origin(kind.plain), get_args(kind.plain)
    if origin is tuple and isinstance(key, int) and arguments[-1] is not Ellipsis:
        return kind_of(arguments[key]) if key < len(arguments) else None
    if is_list(kind):
        return kind_of(arguments[0])
    return kind_of(arguments[1]) if origin in (dict, Mapping) else None


def narrow(kind: Kind, value: object) -> Kind:
    """The alternative that a value chooses; the kind itself where the value does not tell."""
    if isinstance(value, dict):
        sections = [option for option in kind.alternatives if option.section]
        if kind.discriminator:
            chosen = value.get(kind.discriminator)
            sections = [option for option in sections if chosen in tags(option, kind.discriminator)]
        elif sections:
            sections.sort(key=lambda option: -len(value.keys() & fields_of(option.section or Section).keys()))
        others = [o for o in kind.alternatives if o.alternatives or get_origin(o.plain) in (dict, Mapping)]
        return next(iter(sections or others), kind)
    if isinstance(value, list):
        return next((option for option in kind.alternatives if is_list(option)), kind)
    return kind


def narrow_fully(kind: Kind, value: object) -> Kind:
    """`narrow`, through unions within unions."""
    narrowed = narrow(kind, value)
    return kind if narrowed is kind else narrow_fully(narrowed, value)


def tags(kind: Kind, discriminator: str) -> tuple[object, ...]:
    """The values of `name` that choose this section."""
    named = child(kind, discriminator)
    return get_args(named.plain) if named else ()


def choices(kind: Kind) -> dict[str, type[Section]]:
    """The sections of a discriminated union by name, looked up through unions within unions."""
    found: dict[str, type[Section]] = {}
    for option in kind.alternatives:
        if option.section and kind.discriminator:
            found |= {str(tag): option.section for tag in tags(option, kind.discriminator)}
        found |= choices(option)
    return found


def sections_in(kind: Kind) -> tuple[type[Section], ...]:
    """All sections that may stand for a key."""
    if kind.section is not None:
        return (kind.section,)
    return tuple(section for option in kind.alternatives for section in sections_in(option))


def discriminator_of(kind: Kind) -> str:
    """The key that chooses between sections, `name` where nothing else is said."""
    nested = (option.discriminator for option in kind.alternatives)
    return kind.discriminator or next((name for name in nested if name), "name")


def literals(kind: Kind) -> tuple[object, ...]:
    """The fixed values that a key may have."""
    own = get_args(kind.plain) if get_origin(kind.plain) is Literal else ()
    return (*own, *(value for option in kind.alternatives for value in literals(option)))


def unit_of(kind: Kind) -> str | None:
    """The unit of a number, or of each number of a list or table."""
    inner = [kind_of(argument) for argument in get_args(kind.plain) if get_origin(kind.plain) is not Literal]
    units = (unit_of(option) for option in (*kind.alternatives, *inner))
    own = (item.name for item in kind.metadata if isinstance(item, Unit))
    return next(own, None) or next((unit for unit in units if unit), None)


def is_list(kind: Kind) -> bool:
    """Whether the kind is a single one, of lists."""
    return get_origin(kind.plain) in (tuple, list, set, frozenset)


def is_path(kind: Kind) -> bool:
    """Whether a text is a path here."""
    return any(isinstance(item, IsPath) for item in kind.metadata) or any(is_path(o) for o in kind.alternatives)


def tables(kind: Kind, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type[Section]]]:
    """All tables from here down with the sections that may stand there, each choice of a union in turn."""
    for section in sections_in(kind):
        yield path, section
        for name, field in fields_of(section).items():
            yield from tables(field, (*path, name))


def _discriminator(item: object) -> str | None:
    name = item.discriminator if isinstance(item, FieldInfo) else None
    return name if isinstance(name, str) else None


def _flat(metadata: list[object]) -> tuple[object, ...]:
    """Metadata without the `Field(...)` around it."""
    parts = (item.metadata if isinstance(item, FieldInfo) else [item] for item in metadata)
    return tuple(part for group in parts for part in group)
