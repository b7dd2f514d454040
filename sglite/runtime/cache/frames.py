"""Frames: where layers with a sliding window keep what a page holds, for those pages alone that somebody may still see.

The tree and the page tables know pages only; in the layers with full attention a page is its own memory. In the layers
with a window a page has a *frame* as long as one is to be had: frames are fewer than pages.

    page table of a row    A   B   C   D   E          window of 6 positions, page size 4, next position 17
    positions              0   4   8  12  16 17
    frames                 -   7   -   3   0          C's was taken away; 12 .. 16 are seen: D and E are in use

A frame is free, in use by the rows that see it, or idle: kept, as cached pages are, for a prefix that may be matched
again. When frames run out, idle ones are taken away: first those that a running request has left behind, then those
at the places where requests began, ended or are likely to meet; of equals the ones left longest ago. A page that loses
its frame keeps everything else: a prefix can be resumed wherever the window before it is whole.

Which positions of a page are really there is kept in bits, by page: a page may get a frame anew, to be filled again.
Promises: ``free + used + idle == total``; no two pages share a frame. Plain integers, no torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sglite.runtime.protocol import CopyPages


@dataclass(frozen=True)
class WindowSpec:
    """The sliding window of a model's layers, and how many frames they have."""

    window: int
    """Positions that a query sees, its own included."""
    num_frames: int


@dataclass(frozen=True)
class FrameCounts:
    """Frames by what they are to us."""

    free: int
    used: int
    idle: int
    total: int


class Frames:
    """The frames of one pool.

    Args:
        spec: the window and the number of frames.
        page_size: positions a page, and a frame.
    """

    def __init__(self, spec: WindowSpec, page_size: int) -> None:
        self.before = spec.window - 1
        """Positions that have to be there before the one that is computed next."""
        self.total = spec.num_frames
        self.page_size = page_size
        self.taken_away = 0
        """Frames that went to another page while theirs was still in the cache."""
        self.mismatches = 0
        """Pages that were freed in use, which never happens."""
        self.copies: list[CopyPages] = []
        """Copies between frames that the next step begins with."""
        self._frames: dict[int, int] = {}
        self._there: dict[int, int] = {}
        """Bits of the positions that are there, or will be by a step that is planned."""
        self._uses: dict[int, int] = {}
        self._refilled: dict[int, int] = {}
        """The last step that filled positions which had been there before."""
        self._passed: OrderedDict[int, None] = OrderedDict()
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._free = list(range(spec.num_frames - 1, -1, -1))
        self._assigned: dict[int, int] = {}

    # --- looking ----------------------------------------------------------------------------------------------

    @property
    def num_available(self) -> int:
        """Frames that are free or could be taken away."""
        return len(self._free) + len(self._passed) + len(self._kept)

    def counts(self) -> FrameCounts:
        """Frames by what they are to us."""
        return FrameCounts(len(self._free), len(self._uses), len(self._passed) + len(self._kept), self.total)

    def is_used(self, page: int) -> bool:
        """Some row sees the page."""
        return page in self._uses

    def is_used_once(self, page: int) -> bool:
        """Exactly one row sees the page."""
        return self._uses.get(page) == 1

    def frame_of(self, page: int) -> int | None:
        """Where the page is kept."""
        return self._frames.get(page)

    def refilled_step(self, page: int) -> int:
        """The last step that fills the page anew; -1: none."""
        return self._refilled.get(page, -1)

    def is_there(self, table: Sequence[int], position: int) -> bool:
        """Whether the position is kept, on the path with that page table."""
        index, offset = divmod(position, self.page_size)
        return bool(self._there.get(table[index], 0) >> offset & 1)

    def whole_depth(self, table: Sequence[int], depth: int) -> int:
        """The largest depth up to ``depth`` before which the whole window is there; 0 at least."""
        position = depth
        while position > max(0, depth - self.before):
            index, offset = divmod(position - 1, self.page_size)
            low = max(0, depth - self.before - index * self.page_size)
            missing = ~self._there.get(table[index], 0) & _mask(low, offset + 1)
            position = index * self.page_size
            if missing:
                position = depth = position + missing.bit_length() - 1
        return depth

    # --- using ------------------------------------------------------------------------------------------------

    def use(self, pages: Iterable[int]) -> None:
        """One more row sees each of the pages."""
        for page in pages:
            count = self._uses.get(page, 0)
            if count == 0:
                self._passed.pop(page, None)
                self._kept.pop(page, None)
            self._uses[page] = count + 1

    def unuse(self, page: int, keep: bool) -> None:
        """One row less sees the page; ``keep``: others are likely to come to it."""
        self._uses[page] -= 1
        if self._uses[page] == 0:
            del self._uses[page]
            if page in self._frames:
                (self._kept if keep else self._passed)[page] = None

    def provide(self, page: int) -> None:
        """Give a page in use a frame, if it has none; there must be one available."""
        if page in self._frames:
            return
        if not self._free:
            self._take_away()
        self._frames[page] = self._assigned[page] = self._free.pop()
        self._there[page] = 0

    def fill(self, page: int, low: int, high: int, step: int | None = None) -> None:
        """Offsets ``[low, high)`` of a page will be there; ``step``: which fills what had been there before."""
        self._there[page] |= _mask(low, high)
        if step is not None:
            self._refilled[page] = step

    def copy(self, src: int, dst: int, num_tokens: int) -> None:
        """The first positions of page ``src`` are copied to ``dst``, which has a frame, as far as they are there."""
        there = self._there.get(src, 0) & _mask(0, num_tokens)
        if there:
            self.copies.append(CopyPages(self._frames[src], self._frames[dst], num_tokens))
            self._there[dst] |= there

    def take_news(self) -> tuple[dict[int, int], list[CopyPages]]:
        """Pages that have got a frame since the last call, and the copies to be made; for the executor."""
        news = self._assigned, self.copies
        self._assigned, self.copies = {}, []
        return news

    # --- giving up --------------------------------------------------------------------------------------------

    def drop(self, page: int) -> None:
        """The page was freed."""
        self.mismatches += page in self._uses
        frame = self._frames.pop(page, None)
        if frame is not None:
            self._free.append(frame)
            del self._there[page]
            self._assigned.pop(page, None)
        self._refilled.pop(page, None)
        self._passed.pop(page, None)
        self._kept.pop(page, None)

    def forget_since(self, step: int) -> None:
        """What steps from ``step`` on were to fill anew is not there."""
        for page in [page for page, filled in self._refilled.items() if filled >= step]:
            self._there[page] = 0
            del self._refilled[page]

    def _take_away(self) -> None:
        idle = self._passed or self._kept
        page, _ = idle.popitem(last=False)
        self.taken_away += 1
        self._free.append(self._frames.pop(page))
        del self._there[page]
        self._assigned.pop(page, None)
        self._refilled.pop(page, None)


def _mask(low: int, high: int) -> int:
    return (1 << max(low, high)) - (1 << low)
