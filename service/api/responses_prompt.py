"""OpenAI Responses: what of a request is judged. Every string in it that a model can read becomes a segment.

Items, parts and members that are not known here are judged as documents, recorded and forwarded. Ids that stand for
what the provider keeps are collected: they must have been issued to the caller's tenant (`gateway`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from service.api.asgi import malformed
from service.api.request_fields import Fields
from service.api.request_texts import RequestTexts, is_identifier, string
from service.api.strict_json import pointer
from service.api.texts import Path, segments_of, text_of_base64
from service.errors import PayloadTooLarge
from service.firewall.prompt import Role, Unscannable

_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "tool"}
_TOOL_FIELDS = frozenset({"tools", "tool_choice", "text", "reasoning", "include"})
_DOCUMENT_FIELDS = frozenset(
    {"access_programs", "background_options", "context_management", "image", "metadata", "moderation"}
    | {"prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier", "service_tier"}
    | {"stream_options", "truncation", "user"}
)
_ASKING = ("input", "prompt", "previous_response_id", "conversation")
_READ_APART = frozenset({"conversation", "input", "instructions", "model", "previous_response_id", "prompt"})
FIELDS = Fields(
    booleans=frozenset({"background", "parallel_tool_calls", "store", "stream"}),
    integers=frozenset({"max_output_tokens", "max_tool_calls", "top_logprobs"}),
    numbers=frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty"}),
    objects=frozenset({"metadata", "prompt", "reasoning", "stream_options", "text"}),
    lists=frozenset({"include", "tools"}),
    strings=frozenset({"instructions", "previous_response_id", "prompt_cache_key", "safety_identifier", "user"}),
    others=_TOOL_FIELDS | _DOCUMENT_FIELDS | _READ_APART,
    ranges={"max_output_tokens": (1, 2**31)},
)
_ECHOED = _TOOL_FIELDS | _DOCUMENT_FIELDS | {"instructions", "prompt"}
"""What a response object says again of its request."""

_PARTS: dict[str, tuple[str, ...]] = {
    "input_text": ("text",),
    "output_text": ("text",),
    "text": ("text",),
    "summary_text": ("text",),
    "reasoning_text": ("text",),
    "refusal": ("refusal",),
    "logs": ("logs",),
    "input_image": ("image_url", "file_id"),
    "input_file": ("file_data", "file_url", "file_id"),
    "input_audio": ("input_audio",),
    "computer_screenshot": ("image_url", "file_id"),
    "image": ("url",),
}
"""What a part of each type is there for: one of these is needed."""
_ATTACHED = frozenset({"image_url", "file_id", "file_data", "file_url", "url", "data"})
_ITEMS_WORDS = """
message item_reference reasoning function_call function_call_output custom_tool_call custom_tool_call_output
file_search_call web_search_call computer_call computer_call_output code_interpreter_call image_generation_call
local_shell_call local_shell_call_output shell_call shell_call_output apply_patch_call apply_patch_call_output
mcp_list_tools mcp_approval_request mcp_approval_response mcp_call tool_search_call tool_search_output
additional_tools configuration_update compaction compaction_trigger program program_output
"""
_ITEMS = frozenset(_ITEMS_WORDS.split())
_WITH_CONTENT = frozenset({"message", "function_call_output", "custom_tool_call_output"})
_RETURNED = frozenset({"output", "outputs", "result", "results"})
"""Members of items that hold what a tool gave back."""
_MEMBERS_WORDS = """
type id call_id role content status phase summary encrypted_content arguments name namespace output outputs
queries results action actions pending_safety_checks acknowledged_safety_checks code container_id result error
operation server_label tools approval_request_id approve reason input caller async environment max_output_length
execution revised_prompt background output_format quality size svg_usage fingerprint text reasoning user
created_by
"""
_MEMBERS = frozenset(_MEMBERS_WORDS.split())
_PART_MEMBERS = frozenset({"type", "annotations", "logprobs", "detail", "filename", "prompt_cache_breakpoint"})
_IDS = frozenset({"id", "call_id", "container_id", "approval_request_id", "fingerprint"})
_SEALED = re.compile(r"[A-Za-z0-9+/_-]{100,}={0,2}")
_HEX_ID = re.compile(r"[a-z]{1,16}_[0-9a-f]{16,96}")
_QUIET_WORDS = """
message text json_object json_schema verbosity low medium high xhigh none minimal max effort summary
generate_summary auto concise detailed format type required function allowed_tools mode include_obfuscation
disabled default flex priority scale fast ultrafast in_memory in-memory 24h compaction compact_threshold
in_progress completed incomplete searching calling interpreting failed generating commentary final_answer server
client direct program user assistant developer system file_search_call.results web_search_call.results
web_search_call.action.sources message.input_image.image_url computer_call_output.output.image_url
code_interpreter_call.outputs reasoning.encrypted_content message.output_text.logprobs
"""
_QUIET = frozenset(_QUIET_WORDS.split())
"""Words of the protocol itself: a field of nothing but these says nothing to judge."""


class Reading(RequestTexts):
    """Collects the segments of one request, the ids that it refers to, and what in it is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown: set[str] = set()

    def read(self, request: dict[str, Any], max_items: int) -> None:
        """The whole body. Raises PayloadTooLarge over `max_items`, MalformedRequest for wrong types and for a body that
        asks nothing.
        """
        if all(request.get(name) is None for name in _ASKING):
            raise malformed("/input", f"one of {', '.join(_ASKING)}")
        if instructions := request.get("instructions"):
            self.text(instructions, ("instructions",), "system")
        self._input(request.get("input"), max_items)
        if previous := request.get("previous_response_id"):
            self.refer(previous, ("previous_response_id",), outside=False, read=True)
        self._conversation(request.get("conversation"))
        self._template(request.get("prompt"))
        for name, value in request.items():
            if name not in FIELDS.known:
                self.unknown.add(name)
                self.member(name, value, ())
            elif name not in _READ_APART and not isinstance(value, (bool, int, float)) and value is not None:
                self._field(name, value)

    # -- the input ---------------------------------------------------------------------------------------------------

    def _input(self, given: Any, max_items: int) -> None:
        if given is None:
            return
        if isinstance(given, str):
            self.text(given, ("input",), "user", 0)
            return
        if not isinstance(given, list):
            raise malformed("/input", "a string or a list of items")
        if len(given) > max_items:
            raise PayloadTooLarge(f"More than {max_items} items.", pointer="/input")
        for index, item in enumerate(given):
            if not isinstance(item, dict):
                raise malformed(pointer("input", index), "an item")
            self._item(item, ("input", index), index)

    def _item(self, item: dict[str, Any], path: Path, index: int) -> None:
        kind = item.get("type")
        if kind is None:
            refers = "id" in item and not item.keys() & {"role", "content"}
            kind = "item_reference" if refers else "message"
        if not isinstance(kind, str):
            raise malformed(pointer(*path, "type"), "the type of an item")
        role: Role = "tool"
        if kind not in _ITEMS:
            role = "document"
            self.unknown.add(f"input.{kind}")
            self.text(kind, (*path, "type"), role, index)
        if kind == "message":
            role = self._role(item, path, index)
        elif kind == "item_reference" or (kind == "reasoning" and not item.get("encrypted_content") and item.get("id")):
            # What the provider keeps under this id is put in its place.
            self.refer(string(item.get("id"), (*path, "id")), (*path, "id"), outside=False, read=True)
        for name, value in item.items():
            if name == "type" or (kind == "message" and name == "role"):
                continue
            with self.foreign(name in _RETURNED and kind != "message"):
                if name in {"content", "output"} and kind in _WITH_CONTENT:
                    self._content(value, (*path, name), role, index)
                elif name == "tools" and kind != "mcp_list_tools":  # those are a server's own, and not called by this
                    self.named(value, (*path, name))
                    self._member(name, value, path, index, role)
                elif name == "result" and kind == "image_generation_call" and isinstance(value, str):
                    self.attachment(value, (*path, name), "image", index, base64=True)
                else:
                    self._member(name, value, path, index, role)
        if kind == "message" and "content" not in item:
            raise malformed(pointer(*path, "content"), "a string or a list of content parts")
        if kind in {"function_call_output", "custom_tool_call_output"} and "output" not in item:
            raise malformed(pointer(*path, "output"), "a string or a list of content parts")

    def _role(self, item: dict[str, Any], path: Path, index: int) -> Role:
        wire_role = item.get("role")
        if not isinstance(wire_role, str):
            raise malformed(pointer(*path, "role"), "a role")
        role = _ROLES.get(wire_role.strip().lower())  # a lenient reader would not mind the case
        if role is None:
            raise malformed(pointer(*path, "role"), "a role that this protocol has")
        if wire_role not in _ROLES:
            self.text(wire_role, (*path, "role"), "document", index)
        return role

    def _member(self, name: str, value: Any, path: Path, index: int, role: Role) -> None:
        """One member of an item of any type."""
        place = (*path, name)
        if name not in _MEMBERS:
            self.unknown.add(f"input.{name}")
            self.member(name, value, path, index)
        elif isinstance(value, str):
            self._string(name, value, place, index, role)
        elif name in {"content", "summary", "output", "outputs"} and isinstance(value, (list, dict)):
            self._parts(value, place, role, index)
        elif name in {"environment", "caller"}:
            self.named(value, place)
            self.shaped(value, place, role, index)
        else:
            self.shaped(value, place, "document" if name == "results" else role, index)

    def _string(self, name: str, value: str, place: Path, index: int, role: Role) -> None:
        if name in _IDS:
            self._identifier(value, place, index)
            if name == "container_id":
                self.refer(value, place, outside=False)
        elif name == "encrypted_content":
            # The provider's own, sealed by it. Only it can read that; what anybody can read is judged.
            if (text := text_of_base64(value)) is not None or not _SEALED.fullmatch(value):
                self.text(value if text is None else text.replace("\x00", ""), place, "document", index)
            else:
                self.sealed(value)
        elif value not in _QUIET:
            self.text(value, place, role, index)
            if name in {"arguments", "output"} and "\\" in value:
                self.unescaped(value, place, index)

    def _identifier(self, value: str, place: Path, index: int) -> None:
        if not is_identifier(value) and not _HEX_ID.fullmatch(value):
            self.text(value, place, "document", index)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _content(self, content: Any, path: Path, role: Role, index: int) -> None:
        if isinstance(content, str):
            self.text(content, path, role, index)
        elif isinstance(content, list):
            self._parts(content, path, role, index)
        else:
            raise malformed(pointer(*path), "a string or a list of content parts")

    def _parts(self, parts: Any, path: Path, role: Role, index: int) -> None:
        if isinstance(parts, dict):
            self._part(parts, path, role, index)
            return
        for position, part in enumerate(parts):
            place = (*path, position)
            if isinstance(part, dict):
                self._part(part, place, role, index)
            elif isinstance(part, str):
                self.text(part, place, role, index)
            else:
                raise malformed(pointer(*place), "a content part")

    def _part(self, part: dict[str, Any], path: Path, role: Role, index: int) -> None:
        kind = part.get("type")
        if kind is None:  # such as the chunks of a shell's output
            self.named(part, path, tool=False)
            self.shaped(part, path, role, index)
            return
        if not isinstance(kind, str):
            raise malformed(pointer(*path, "type"), "the type of a content part")
        wanted = _PARTS.get(kind, ())
        if not wanted:
            self.unknown.add(f"input.{kind}")
            self.text(kind, (*path, "type"), "document", index)
        elif not any(part.get(name) is not None for name in wanted):
            raise malformed(pointer(*path, wanted[0]), f"the field of a part of type {kind}")
        for name, value in part.items():
            place = (*path, name)
            if name == "type" or (value is None and (name in wanted or name in _PART_MEMBERS)):
                continue
            if name in wanted and name in _ATTACHED:
                what = "file_id" if name == "file_id" else kind
                if name == "file_id":
                    self.refer(value, place)
                with self.foreign():
                    self.attachment(
                        string(value, place),
                        place,
                        what,
                        index,
                        base64=name == "file_data",
                        part=kind,
                        detail=part.get("detail"),
                    )
            elif name == "input_audio" and name in wanted:
                self._audio(value, place, index)
            elif name in wanted:
                self.text(string(value, place), place, role, index)
            elif name in _PART_MEMBERS:
                if not isinstance(value, str) or value not in {"auto", "low", "high", "original"}:
                    self.shaped(value, place, "document", index)
            else:
                self.unknown.add(f"input.{name}")
                self.member(name, value, path, index)

    def _audio(self, value: Any, path: Path, index: int) -> None:
        if not isinstance(value, dict) or not isinstance(value.get("data"), str):
            raise malformed(pointer(*path, "data"), "a string")
        for name, item in value.items():
            if name == "data":
                self.attachment(item, (*path, name), "input_audio", index, base64=True)
            elif name != "format" or not isinstance(item, str) or not is_identifier(item):
                self.member(name, item, path, index, known=name == "format")

    # -- beside the input --------------------------------------------------------------------------------------------

    def _conversation(self, value: Any) -> None:
        if value is None:
            return
        place: Path = ("conversation",)
        if isinstance(value, dict):
            for name, item in value.items():
                if name != "id":
                    self.member(name, item, place)
            value, place = value.get("id"), ("conversation", "id")
        self.refer(string(value, place), place, outside=False, read=True)

    def _template(self, value: Any) -> None:
        """A template that the operator keeps at the provider; what it says is not known here, its variables are."""
        if value is None:
            return
        self._identifier(string(value.get("id"), ("prompt", "id")), ("prompt", "id"), -1)
        self.unscannable.append(Unscannable("/prompt/id", "prompt"))
        self.reads_what_is_kept()
        for name, item in value.items():
            if name == "variables" and isinstance(item, dict):
                for key, variable in item.items():
                    self.member(key, None, ("prompt", name))
                    if isinstance(variable, (str, list)):
                        self._content(variable, ("prompt", name, key), "user", -1)
                    elif isinstance(variable, dict):
                        self._part(variable, ("prompt", name, key), "user", -1)
            elif name == "version" and isinstance(item, str):
                self._identifier(item, ("prompt", name), -1)
            elif name != "id":
                self.member(name, item, ("prompt",), known=name in {"variables", "version"})

    def _field(self, name: str, value: Any) -> None:
        if name == "tools":
            for index, tool in enumerate(value):
                if not isinstance(tool, dict):
                    raise malformed(pointer(name, index), "a tool definition")
                if tool.get("type") in ("function", "custom"):  # it may be of any type
                    string(tool.get("name"), (name, index, "name"))
                self.named(tool, (name, index))
                self.shaped(tool, (name, index), "tool")
            return
        found = list(segments_of(value, (name,), "tool" if name in _TOOL_FIELDS else "document"))
        if not all(word in _QUIET for s in found for word in s.text.split("\n")):
            first = len(self.segments)
            self.add(found)
            self.count_as_written(first, value)


def echoes_of(request: dict[str, Any]) -> frozenset[str]:
    """The strings of a request that its response object repeats."""
    return frozenset(text for name in _ECHOED for text in _all_strings(request.get(name)))


def _all_strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _all_strings(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _all_strings(item)
