"""One call's way to whoever can answer it: one provider after the other, before the first byte only.

A provider is asked after another only once that one has refused, could not be reached or was not asked at all (a
translation may have no words for the call): a call is never with two of them. One that is silent may be working, and
nobody is asked in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from service.errors import RequestError, UpstreamError, UpstreamTimeout, UpstreamUnavailable, UpstreamUnreachable
from service.upstream.line import OUT_OF_SERVICE, Full, Line, LineReply, Resting

_RATE_LIMITED = 429


class Target:
    """A provider as one call would ask it; `model` is the name that it knows the model by, empty where it is
    not asked for one. `translated`: it speaks another protocol than the caller.
    """

    def __init__(self, line: Line, model: str, *, translated: bool = False) -> None:
        self.line = line
        self.model = model
        self.translated = translated

    @property
    def name(self) -> str:
        """The provider's."""
        return self.line.name

    @property
    def asks_usage(self) -> bool:
        """Whether it may be asked for the usage of a stream."""
        return self.line.provider.asks_usage


class Route:
    """The providers that may answer one call, in the order in which they are asked (`interfaces.Route`)."""

    def __init__(self, targets: Sequence[Target], *, next_on_429: bool = False) -> None:
        self.targets = tuple(targets)
        self._next_on = OUT_OF_SERVICE | {_RATE_LIMITED} if next_on_429 else OUT_OF_SERVICE

    @property
    def name(self) -> str:
        """Of the provider that is asked first."""
        return self.targets[0].name

    @property
    def models(self) -> tuple[str, ...]:
        """The names by which they know the model."""
        return tuple(dict.fromkeys(target.model for target in self.targets if target.model))

    def only(self, name: str) -> Route | None:
        """With no other provider than this one; None where it is not among them."""
        kept = [target for target in self.targets if target.name == name][:1]
        return Route(kept) if kept else None

    async def open(
        self,
        ask_of: Callable[[Target], tuple[str, bytes]],
        *,
        stream: bool,
        headers: Mapping[str, str],
        method: str,
        note: Callable[[str, str], None],
    ) -> LineReply:
        """Ask until one answers; `ask_of` makes path and body, `note` is told (provider, how it went) of each.

        How it went is a status, `unreachable`, `timeout`, `invalid`, `full`, `open` (the breaker), `refused`
        (the provider cannot be asked this; nothing was sent) or `left`. Where
        nobody can take the call, the last answer that a provider gave is the reply. Raises UpstreamError, and
        RequestError where nobody could be asked this.
        """
        kept: LineReply | None = None
        failure: UpstreamError | None = None
        refusal: RequestError | None = None
        try:
            for target in self.targets:
                try:
                    reply = await self._ask(target, ask_of, note, stream=stream, headers=headers, method=method)
                except (UpstreamUnreachable, UpstreamUnavailable) as error:
                    if failure is None or isinstance(failure, UpstreamUnavailable):
                        failure = error
                    continue
                except RequestError as error:
                    refusal = refusal or error
                    continue
                if kept is not None:
                    await kept.close()
                    kept = None
                if reply.status not in self._next_on:
                    return reply
                reply.free()
                kept = reply
        except BaseException:
            if kept is not None:
                await kept.close()
            raise
        if kept is not None:
            return kept
        reason = failure or refusal  # who is only away may take it yet
        assert reason is not None
        raise reason

    async def _ask(
        self,
        target: Target,
        ask_of: Callable[[Target], tuple[str, bytes]],
        note: Callable[[str, str], None],
        *,
        stream: bool,
        headers: Mapping[str, str],
        method: str,
    ) -> LineReply:
        how = "left"
        try:
            path, body = ask_of(target)
            reply = await target.line.open(
                path, body, stream=stream, headers=headers, method=method, model=target.model
            )
            how = str(reply.status)
            reply.translated = target.translated
            return reply
        except RequestError:
            how = "refused"
            raise
        except UpstreamError as error:
            how = _WORDS.get(type(error), "invalid")
            raise
        finally:
            note(target.name, how)


_WORDS: dict[type[UpstreamError], str] = {
    UpstreamUnreachable: "unreachable",
    UpstreamTimeout: "timeout",
    Full: "full",
    Resting: "open",
}
