"""Questions about regular expressions that their structure answers, where neither `And` nor `Not` is in them.

No automaton is built: `plain_matches` follows sets of positions, the rest is arithmetic. Every answer is linear in
the expression, and no text longer than MAX_LENGTH is written out.
"""

from __future__ import annotations

from bisect import bisect_right

from sglite.constrained.charset import MAX, Ranges, size
from sglite.constrained.fsm_terms import TooLarge
from sglite.constrained.grammar import Alt, And, Chars, Node, Not, Repeat, Seq, Text

MAX_LENGTH = 1_000_000


def is_plain(node: Node) -> bool:
    """Whether `node` holds neither And nor Not. Raises TypeError for a node that is not regular."""
    if isinstance(node, Text | Chars):
        return True
    if isinstance(node, Seq | Alt):
        return all(is_plain(item) for item in node.items)
    if isinstance(node, Repeat):
        return is_plain(node.item)
    if isinstance(node, And | Not):
        return False
    raise TypeError(f"{type(node).__name__} is not regular: only Text, Chars, Seq, Alt, Repeat, And and Not are")


def plain_matches(node: Node, text: str) -> bool:
    """Whether `node` matches the whole of `text`."""
    return len(text) in _ends(node, text, {0})


def _ends(node: Node, text: str, starts: set[int]) -> set[int]:
    """Positions where a match that begins at one of `starts` can end."""
    if not starts:
        return starts
    if isinstance(node, Text):
        return {at + len(node.text) for at in starts if text.startswith(node.text, at)}
    if isinstance(node, Chars):
        return {at + 1 for at in starts if at < len(text) and _within(node.ranges, ord(text[at]))}
    if isinstance(node, Seq):
        for item in node.items:
            starts = _ends(item, text, starts)
        return starts
    if isinstance(node, Alt):
        return {end for item in node.items for end in _ends(item, text, starts)}
    assert isinstance(node, Repeat)
    return _repeated(node, text, starts)


def _repeated(node: Repeat, text: str, starts: set[int]) -> set[int]:
    if node.high is not None and node.high < node.low:
        return set()
    low = node.low
    if low > 1 and (bounds := plain_lengths(node.item)) is not None and bounds[0] == 0:
        low = 0  # of items that may be empty, fewer are as good
    reached = set(starts)
    for _ in range(low):
        reached = _ends(node.item, text, reached)
        if not reached:
            break
    frontier, rounds = set(reached), low
    while frontier and (node.high is None or rounds < node.high):
        frontier = _ends(node.item, text, frontier) - reached
        reached |= frontier
        rounds += 1
    return reached


def _within(ranges: Ranges, code: int) -> bool:
    at = bisect_right(ranges, (code, MAX)) - 1
    return at >= 0 and ranges[at][1] >= code


def plain_shortest(node: Node) -> str | None:
    """A shortest text, of printable characters where there are some; None when there is no text."""
    bounds = plain_lengths(node)
    if bounds is None:
        return None
    _check_length(bounds[0])
    return _shortest(node)


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise TooLarge(f"too large: a text of {length} characters, at most {MAX_LENGTH}; lower the counts")


def _shortest(node: Node) -> str | None:
    if isinstance(node, Text):
        return node.text if _encodable(node.text) else None
    if isinstance(node, Chars):
        return _example(node.ranges)
    if isinstance(node, Seq):
        parts = [_shortest(item) for item in node.items]
        return None if None in parts else "".join(part for part in parts if part is not None)
    if isinstance(node, Alt):
        texts = (_shortest(item) for item in node.items)
        return min((text for text in texts if text is not None), key=len, default=None)
    assert isinstance(node, Repeat)
    if node.high is not None and node.high < node.low:
        return None
    if node.low == 0:
        return ""
    text = _shortest(node.item)
    return None if text is None else text * node.low


def _encodable(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def _example(ranges: Ranges) -> str | None:
    for low, high in ranges:
        for code in range(max(low, 0x20), min(high, 0x7E) + 1):
            if code not in (0x22, 0x5C):  # readable in JSON too
                return chr(code)
    return chr(ranges[0][0]) if ranges else None


def plain_is_empty(node: Node) -> bool:
    """Whether there is no text."""
    if isinstance(node, Text):
        return not _encodable(node.text)
    if isinstance(node, Chars):
        return not node.ranges
    if isinstance(node, Seq):
        return any(plain_is_empty(item) for item in node.items)
    if isinstance(node, Alt):
        return all(plain_is_empty(item) for item in node.items)
    assert isinstance(node, Repeat)
    if node.high is not None and node.high < node.low:
        return True
    return node.low > 0 and plain_is_empty(node.item)


def plain_lengths(node: Node) -> tuple[int, int | None] | None:
    """Fewest and most characters of a text, (low, None) without a bound; None when there is no text."""
    if isinstance(node, Text):
        return (len(node.text), len(node.text)) if _encodable(node.text) else None
    if isinstance(node, Chars):
        return (1, 1) if node.ranges else None
    if isinstance(node, Repeat):
        return _repeat_lengths(node)
    assert isinstance(node, Seq | Alt)
    bounds = [plain_lengths(item) for item in node.items]
    known = [bound for bound in bounds if bound is not None]
    highs = [high for _, high in known if high is not None]
    endless = len(highs) < len(known)
    if isinstance(node, Seq):
        return (sum(low for low, _ in known), None if endless else sum(highs)) if len(known) == len(bounds) else None
    return (min(low for low, _ in known), None if endless else max(highs)) if known else None


def _repeat_lengths(node: Repeat) -> tuple[int, int | None] | None:
    if node.high is not None and node.high < node.low:
        return None
    item = plain_lengths(node.item)
    if item is None or item == (0, 0):
        return (0, 0) if item or node.low == 0 else None
    low, high = item
    return low * node.low, 0 if node.high == 0 else None if node.high is None or high is None else high * node.high


def plain_finite(node: Node, limit: int) -> list[str] | None:
    """Every text, each once, in the order written; None when there are more than `limit`."""
    bounds = plain_lengths(node)
    if bounds is None or bounds[1] is None:
        return [] if bounds is None else None
    _check_length(bounds[1])
    found = _list(node, limit)
    return None if found is None else list(found)


def _list(node: Node, limit: int) -> dict[str, None] | None:
    """The same for a node that has a text. No part of a Seq then has more texts than the whole."""
    if isinstance(node, Text):
        return {node.text: None} if limit >= 1 else None
    if isinstance(node, Chars):
        if size(node.ranges) > limit:
            return None
        return {chr(code): None for low, high in node.ranges for code in range(low, high + 1)}
    if isinstance(node, Seq):
        return _product([_list(item, limit) for item in node.items], limit)
    if isinstance(node, Alt):
        union: dict[str, None] = {}
        for item in node.items:
            if not plain_is_empty(item):
                texts = _list(item, limit)
                union.update(texts or {})
                if texts is None or len(union) > limit:
                    return None
        return union
    assert isinstance(node, Repeat)
    return _list_repeat(node, limit)


def _product(parts: list[dict[str, None] | None], limit: int) -> dict[str, None] | None:
    texts: dict[str, None] = {"": None}
    for part in parts:
        if part is None:
            return None
        longer: dict[str, None] = {}
        for text in texts:
            for tail in part:
                longer[text + tail] = None
            if len(longer) > limit:
                return None
        texts = longer
    return texts


def _list_repeat(node: Repeat, limit: int) -> dict[str, None] | None:
    low, high = node.low, node.high
    bounds = _repeat_lengths(node)
    if bounds is None or bounds[1] == 0:
        return {"": None}
    item = None if bounds[1] is None or high is None else _list(node.item, limit)
    if item is None or high is None:
        return None
    if len(item) == 1:  # its powers differ by their counts alone
        (text,) = item
        return {text * count: None for count in range(low, high + 1)} if high - low < limit else None
    texts: dict[str, None] | None = {"": None}
    union: dict[str, None] = {}
    for count in range(high + 1):  # each round adds a text, so the limit ends this
        if texts is None or len(union) > limit:
            return None
        if count >= low:
            union |= texts
        if count < high:
            texts = _product([texts, item], limit)
    return union if len(union) <= limit else None
