"""All readings of a text that are worth judging. `sanitise.py` makes the first one, `decode.py` the others."""

from __future__ import annotations

import numpy as np

from service.firewall.decode import decoded_views
from service.firewall.pieces import split
from service.firewall.sanitise import Hidden, View, sanitise

__all__ = ["View", "views"]

# One pass of a regular expression holds the interpreter lock; over a block it takes milliseconds, and the event loop
# of the service gets its turn in between. A run of encoded text is cut only where it is longer than a block.
BLOCK_CHARS = 131_072


def views(text: str) -> list[View]:
    """The sanitised reading of a text, then the decoded ones that differ from it.

    Linear in the text and never raises; plain ASCII is its own first view. Decoded views together hold at most about
    twice the text in characters.
    """
    if len(text) <= BLOCK_CHARS:
        main = sanitise(text)
        return [main, *decoded_views(main)]
    mains: list[View] = []
    decoded: dict[str, View] = {}
    start = 0
    for block in split(text, BLOCK_CHARS):
        main = sanitise(block)
        for view in decoded_views(main):
            decoded.setdefault(view.text, _moved(view, start))
        mains.append(_moved(main, start))
        start += len(block)
    whole = _whole(mains, len(text))
    decoded.pop(whole.text, None)
    return [whole, *decoded.values()]


def _moved(view: View, start: int) -> View:
    """A view of a block as a view of the text in which the block begins at `start`."""
    starts = None if view.starts is None else view.starts + np.int32(start)
    hidden: tuple[Hidden, ...] = tuple((first + start, last + start, kind) for first, last, kind in view.hidden)
    return View(view.text, view.kind, starts, view.stop + start, hidden)


def _whole(mains: list[View], length: int) -> View:
    """The main views of all blocks, which lie one after the other, as one."""
    text = "".join(view.text for view in mains)
    if all(view.starts is None for view in mains):
        return View(text, "main", None, length, tuple(note for view in mains for note in view.hidden))
    starts = [
        np.arange(view.stop - len(view.text), view.stop, dtype=np.int32) if view.starts is None else view.starts
        for view in mains
    ]
    hidden = tuple(note for view in mains for note in view.hidden)
    return View(text, "main", np.concatenate(starts), length, hidden[:64])
