"""What of a request its reply is judged by, beside the texts that must not leave; and a tool call as it comes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec

from service.firewall.prompt import Segment

_ESCAPES = re.compile(r"\\[nrt]")  # a result is often JSON in a string, where they would stick to the next word


class OfferedTool(msgspec.Struct, frozen=True):
    """A tool that the model may call. `schema` is the JSON schema of its arguments, None where it takes any text or
    the provider knows them.
    """

    name: str
    schema: Any = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """`tools` are those offered, None where the request does not say all of them. `results` are texts of the
    conversation that neither user nor system wrote: results of tools, documents. `supplied` are those of them that
    the caller has (`supplied_in`). `caller` tells whose calls add up: tenant and key; `end_user` is the caller's own
    name for whom it asks. `canary` was put into the system text and must not come back. `personal` are data of the
    caller's own that the model was not shown.
    """

    tools: tuple[OfferedTool, ...] | None = None
    results: tuple[str, ...] = ()
    supplied: tuple[str, ...] = ()
    caller: str = ""
    end_user: str = ""
    canary: str = ""
    personal: tuple[str, ...] = ()


def supplied_in(segments: Iterable[Segment]) -> tuple[str, ...]:
    """The texts of tools' results and documents: whoever sent them has them, so that to repeat them tells him nothing.

    What the model wrote itself is none of them, or a prompt that it told once would be free from then on: of a message
    with words of an assistant only what is marked as foreign counts.
    """
    known = list(segments)
    assistants = {each.message for each in known if each.message >= 0 and each.role == "tool" and not each.foreign}
    return tuple(
        _ESCAPES.sub(" ", each.text)
        for each in known
        if each.foreign or (each.role == "document" and each.message not in assistants)
    )


class CallPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a tool call in a reply. `place` begins the names of its channels, as `choices/0/tool_calls/0`.

    `name` and `arguments` are what this part adds. With `whole`, `arguments` is all of them and the call is complete.
    `channel` is the one that holds the arguments as text, empty where none does; where they are JSON of the protocol
    itself, `leaves` are (channel, string) for each string in them. `text` says that arguments are free text, no JSON.
    """

    place: str
    name: str = ""
    arguments: str = ""
    channel: str = ""
    leaves: tuple[tuple[str, str], ...] = ()
    whole: bool = False
    text: bool = False
