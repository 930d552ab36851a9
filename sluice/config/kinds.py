"""What a key of the schema takes, in YAML's words: `whole number > 0`, `list of text`."""

import json
from collections.abc import Iterator
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def kind_in_words(info: FieldInfo) -> str:
    """The type of a key and its limits."""
    kind, or_null, _ = _kind(info.annotation).partition(" or null")
    limits = [text for part in info.metadata for text in _limits(part)]
    return _limited(kind, limits) + or_null


def takes_several_types(info: FieldInfo) -> bool:
    """Whether the key takes values of more than one type, null not counted."""
    kinds = [kind for kind in get_args(info.annotation) if kind is not NoneType]
    return get_origin(info.annotation) in (Union, UnionType) and len(kinds) > 1


def _kind(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(
            f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`" for value in arguments
        )
    if origin in (Union, UnionType):
        null = ["null"] if NoneType in arguments else []
        return " or ".join([*(_alternative(argument) for argument in arguments if argument is not NoneType), *null])
    if hasattr(kind, "__metadata__"):  # Annotated, below a union
        return _limited(_kind(arguments[0]), [text for part in kind.__metadata__ for text in _limits(part)])
    if origin is list:
        return f"list of {_kind(arguments[0])}"
    if origin is tuple:
        return f"list of {len(arguments)} x {_kind(arguments[0])}"
    if origin is dict:
        return f"mapping of text to {_kind(arguments[1])}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "section"
    return {bool: "true or false", int: "whole number", float: "number", str: "text", Any: "anything"}[kind]


def _alternative(kind: Any) -> str:
    """One of several types; a section among them is written with its keys."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return "{" + ", ".join(f"{name}: {kind_in_words(info)}" for name, info in kind.model_fields.items()) + "}"
    return _kind(kind)


def _limited(kind: str, limits: list[str]) -> str:
    return " ".join([kind, " and ".join(limits)]) if limits else kind


def _limits(part: Any) -> Iterator[str]:
    """What one piece of metadata demands; a Field inside an annotation holds several."""
    for constraint in getattr(part, "metadata", [part]):
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if (bound := getattr(constraint, name, None)) is not None:
                yield f"{sign} {bound:g}"
        if least := getattr(constraint, "min_length", None):
            yield f"with at least {least} item"
        if pattern := getattr(constraint, "pattern", None):
            yield f"matching `{pattern}`"
