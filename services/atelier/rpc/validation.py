"""Checks that hold for every request: an enum value that this version does not know is refused with the ones that it does."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from atelier.errors import Violation


def unknown_enum_values(message: Message, prefix: str = "") -> Iterator[Violation]:
    """Yields a violation for every enum field, at any depth, whose number has no name."""
    for field, value in message.ListFields():
        path = f"{prefix}{field.name}"
        values = list(value) if field.is_repeated and not _is_map(field) else [value]
        for index, item in enumerate(values):
            name = f"{path}[{index}]" if field.is_repeated else path
            if field.enum_type is not None:
                if item not in field.enum_type.values_by_number:
                    yield Violation(name, f"{item} is not known; supported: {', '.join(supported(field.enum_type))}")
            elif field.message_type is not None and not _is_map(field) and field.message_type.file.package.startswith("atelier."):
                yield from unknown_enum_values(item, f"{name}.")


def supported(enum: EnumDescriptor) -> list[str]:
    """The names of an enum's values, as they are written in JSON, without the unspecified one."""
    return [value.name for value in enum.values if value.number != 0]


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
