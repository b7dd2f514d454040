"""In which order waiting requests are considered. Priority always comes first; a policy orders equals.

program      requests of programs that have had less service first (see ``programs.py``), then arrival
fcfs         arrival
lpm          longest prefix already in the tree first
dfs-weight   depth-first through the tree, heaviest subtree first: requests that share a prefix run together
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from sglite.runtime.cache.node import RadixNode
from sglite.runtime.cache.radix import RadixCache
from sglite.runtime.engine.request import Request

Policy = Callable[[Sequence[Request], RadixCache], list[Request]]

MATCHED_REQUESTS = 256
"""Tree-aware policies look at no more requests than this, in order of arrival: matching costs time every step."""


def in_order(waiting: Sequence[Request], cache: RadixCache) -> list[Request]:
    """By the requests' own order: priority, level of the program where levels are wanted, then arrival."""
    return sorted(waiting, key=lambda request: request.sort_key)


def longest_prefix_match(waiting: Sequence[Request], cache: RadixCache) -> list[Request]:
    """By priority, then tokens the tree knows, most first, then arrival."""
    ordered = in_order(waiting, cache)
    head, tail = ordered[:MATCHED_REQUESTS], ordered[MATCHED_REQUESTS:]
    depth = {request.order: cache.match(request.tokens, request.request.namespace).depth for request in head}
    return sorted(head, key=lambda r: (-r.priority, -depth[r.order], r.rank, r.order)) + tail


def dfs_weight(waiting: Sequence[Request], cache: RadixCache) -> list[Request]:
    """By priority, then the order of a depth-first walk that enters the subtree with most waiting requests first."""
    ordered = in_order(waiting, cache)
    head, tail = ordered[:MATCHED_REQUESTS], ordered[MATCHED_REQUESTS:]
    paths: dict[int, list[RadixNode]] = {}
    weight: dict[RadixNode, int] = defaultdict(int)
    first: dict[RadixNode, int] = {}
    for request in head:
        node = cache.match(request.tokens, request.request.namespace).node
        paths[request.order] = cache.path(node)
        for above in paths[request.order]:
            weight[above] += 1
            first.setdefault(above, request.rank)

    def key(request: Request) -> tuple[int, list[tuple[int, int]], int, int]:
        walk = [(-weight[node], first[node]) for node in paths[request.order]]
        walk.append((1, 0))  # who ends at a node comes after everybody further down
        return -request.priority, walk, request.rank, request.order

    return sorted(head, key=key) + tail


POLICIES: dict[str, Policy] = {
    "program": in_order,
    "fcfs": in_order,
    "lpm": longest_prefix_match,
    "dfs-weight": dfs_weight,
}


def get_policy(name: str) -> Policy:
    """A policy by its name; ``ValueError`` lists the names."""
    if name not in POLICIES:
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {name!r}")
    return POLICIES[name]
