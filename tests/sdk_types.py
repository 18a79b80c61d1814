"""The types of the vendors' SDKs, taken apart: values of a type, each with a mark in one of its places."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import cache
from random import Random
from typing import Any, NamedTuple

import typing_extensions
from pydantic import BaseModel

_WRAPPERS = {typing.Required, typing.NotRequired, typing_extensions.Required, typing_extensions.NotRequired}
_SCALARS = (bool, int, float, datetime, bytes)
UNKNOWN = "x_unknown"
# Of these an object needs one, which its type does not say.
_IMAGE = {"file_id": "file-1", "image_url": "https://example.com/a.png"}
_FILE = {"file_id": "file-1", "file_data": "JVBERi0xLjcK"}
_ONE_OF: dict[str, dict[str, Any]] = {
    "BetaSystemMessageParam": {"content": "word", "output_config": {}},
    "FileFile": _FILE,
    "ResponseInputFileParam": _FILE,
    "ResponseInputFileContentParam": _FILE,
    "ResponseInputImageParam": _IMAGE,
    "ResponseInputImageContentParam": _IMAGE,
    "ResponseComputerToolCallOutputScreenshotParam": _IMAGE,
}


class Marked(NamedTuple):
    """A value with one mark in it. `place` names the members on the way to it, with the type that a union chose;
    `kind` is "text" where the SDK has a string there, "word" where it has a literal or a number, "null" where there may
    be nothing, which is what then stands there, else "unknown".
    """

    place: str
    kind: str
    value: Any


def marked(kind: Any, mark: Any, place: str = "", above: tuple[Any, ...] = ()) -> Iterator[Marked]:
    """Values of a type that have everything they need, each with the mark in one place.

    A type within itself is followed once.
    """
    kind = _bare(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is str:
        yield Marked(place, "text", mark)
    elif kind in (object, Any):
        yield Marked(place, "text", mark)
        yield Marked(f"{place}.key", "text", {"key": mark})
        yield Marked(f"{place}.{{}}", "text", {mark: 1})
    elif kind is types.NoneType:
        yield Marked(place, "null", None)
    elif kind in _SCALARS or origin is typing.Literal:
        yield Marked(place, "word", mark)
    elif origin in {typing.Union, types.UnionType}:
        for part in inner:
            yield from marked(part, mark, place, above)
    elif _is_mapping(origin):
        yield Marked(f"{place}.{{}}", "text", {mark: least(inner[1], above)})
        yield from (Marked(m.place, m.kind, {"key": m.value}) for m in marked(inner[1], mark, f"{place}.key", above))
    elif _is_sequence(origin):
        yield from (Marked(m.place, m.kind, [m.value]) for m in marked(inner[0], mark, f"{place}[]", above))
    elif _is_object(kind) and kind not in above:
        plain, below = least(kind, above), (*above, kind)
        name_of = f"{place}({kind.__name__})"
        for name, (member, _) in _members(kind).items():
            for found in marked(member, mark, f"{name_of}.{name}", below):
                yield Marked(found.place, found.kind, {**plain, name: found.value})
        yield Marked(f"{name_of}.{UNKNOWN}", "unknown", {**plain, UNKNOWN: mark})
        yield Marked(f"{name_of}.{{}}", "unknown", {**plain, str(mark): True})


def least(kind: Any, above: tuple[Any, ...] = ()) -> Any:
    """A value of a type with nothing in it but what it needs."""
    kind = _bare(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is str or kind in (object, Any):
        return "word"
    if kind in _SCALARS:
        return {bool: True, float: 0.5}.get(kind, 1)
    if origin is typing.Literal:
        return inner[0]
    if origin in {typing.Union, types.UnionType}:
        return least(next(part for part in inner if part is not types.NoneType), above)
    if _is_mapping(origin):
        return {}
    if _is_sequence(origin):
        return [] if _bare(inner[0]) in above else [least(inner[0], above)]
    if _is_object(kind):
        needed = {name: member for name, (member, required) in _members(kind).items() if required}
        return {name: least(member, (*above, kind)) for name, member in needed.items()} | _ONE_OF.get(kind.__name__, {})
    return None


@cache
def _members(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The members of an object as they are written on the wire: their types, and whether each is needed."""
    if issubclass(kind, BaseModel):
        return {f.alias or name: (f.annotation, f.is_required()) for name, f in kind.model_fields.items()}
    found = {}
    for name, hint in typing_extensions.get_type_hints(kind, include_extras=True).items():
        required = typing.get_origin(hint) in {typing.Required, typing_extensions.Required}
        found[_alias(hint) or name] = (hint, required)
    return found


def _alias(hint: Any) -> str:
    while typing.get_origin(hint) in _WRAPPERS:
        (hint,) = typing.get_args(hint)
    names = (getattr(note, "alias", None) for note in getattr(hint, "__metadata__", ()))
    return next((name for name in names if name), "")


def _bare(kind: Any) -> Any:
    while True:
        if isinstance(kind, typing_extensions.TypeAliasType):
            kind = kind.__value__
        elif typing.get_origin(kind) in _WRAPPERS or typing.get_origin(kind) is typing.Annotated:
            kind = typing.get_args(kind)[0]
        else:
            return kind


def _is_mapping(origin: Any) -> bool:
    return inspect.isclass(origin) and issubclass(origin, typing.Mapping)


def _is_sequence(origin: Any) -> bool:
    if not inspect.isclass(origin) or _is_mapping(origin):
        return False
    return issubclass(origin, typing.Iterable) or origin.__name__ == "SequenceNotStr"


def _is_object(kind: Any) -> bool:
    return inspect.isclass(kind) and (typing_extensions.is_typeddict(kind) or issubclass(kind, BaseModel))


def drawn(kind: Any, chance: Random, text: Callable[[], str], above: tuple[Any, ...] = ()) -> Any:
    """Any value of a type: some of what it may have, now and then a member that no type knows."""
    kind = _bare(kind)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is str:
        return text()
    if kind in (object, Any):
        return chance.choice([text(), chance.randrange(100), None, [text()], {text(): {"n": chance.random()}}])
    if kind in _SCALARS:
        return {bool: chance.random() < 0.5, float: round(chance.uniform(-2, 2), 3)}.get(kind, chance.randrange(1, 99))
    if origin is typing.Literal:
        return chance.choice(inner)
    if origin in {typing.Union, types.UnionType}:
        # A file or a path is read by the SDK, and stands on the wire as a string.
        written = [part for part in inner if part is types.NoneType or least(part, above) is not None]
        return drawn(chance.choice(written), chance, text, above)
    if _is_mapping(origin):
        return {text(): drawn(inner[1], chance, text, above) for _ in range(chance.randrange(3))}
    if _is_sequence(origin):
        few = 0 if _bare(inner[0]) in above else chance.randrange(1, 3)
        return [drawn(inner[0], chance, text, above) for _ in range(few)]
    if _is_object(kind):
        many = 0.3 if len(above) < 3 else 0.1
        names = {n: m for n, (m, required) in _members(kind).items() if required or chance.random() < many}
        made = {name: drawn(member, chance, text, (*above, kind)) for name, member in names.items()}
        made |= _ONE_OF.get(kind.__name__, {})
        if chance.random() < 0.1:
            made[UNKNOWN] = chance.choice([text(), None, [1, text()], {"deep": {"er": text()}}])
        items = list(made.items())
        chance.shuffle(items)
        return dict(items)
    return None


def said_before(request: dict[str, Any]) -> dict[str, Any]:
    """The request with what its types do not say that it needs: something to answer, and before what tools gave back
    the calls that asked for it.
    """
    if "messages" not in request:
        asks = any(
            request.get(name) is not None for name in ("input", "prompt", "previous_response_id", "conversation")
        )
        return request if asks else {**request, "input": "word"}
    turns = _dicts(request["messages"])
    calls = [{"id": turn.get("tool_call_id")} for turn in turns if turn.get("role") in {"tool", "function"}]
    blocks = [block for turn in turns for block in _dicts(turn.get("content")) if block.get("type") == "tool_result"]
    uses = [{"type": "tool_use", "id": block.get("tool_use_id"), "name": "f", "input": {}} for block in blocks]
    first = [{"role": "assistant", "content": uses or "word", **({"tool_calls": calls} if calls else {})}]
    return {**request, "messages": [*first, *request["messages"]]} if calls or uses else request


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
