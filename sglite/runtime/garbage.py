"""Garbage collections in the processes of a server: rare, and never of what was there before the first request.

A collection stops its process, for as long as it takes to look at everything that it covers. Modules, tokenizer,
routes and templates are some hundred thousand objects that stay: looking through them takes a tenth of a second. What
a request makes goes when it ends, without a collection, because it holds no cycles; and should something hold some,
the oldest generation is collected before they are many.

A body of millions of values is not looked through either, neither while it is read nor as long as it is there.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_THRESHOLDS = 10_000, 3, 10
"""Objects more than before, collections of the youngest, and of the middle generation: until each is collected. The
first two bound the pauses: the middle one covers 40,000 objects. Of 100,000, some 50 ms of processor time go by. The
last bounds what cycles can hold: 440,000 objects."""


def settle() -> None:
    """What is there by now stays: no later collection looks at it, and later ones are rare. For a process that is a
    server's own, and once in its life: when everything has been loaded."""
    gc.collect()
    gc.freeze()
    gc.collect()  # the oldest generation is due when a quarter as much is new as this found: now of nothing
    gc.set_threshold(*_THRESHOLDS)


@contextmanager
def overlooked() -> Iterator[None]:
    """No collection looks at what is made inside, at once and by the million, then or later. It goes when nobody holds
    it any more, so it must hold no cycles. Nothing changes in a process that has not been ``settle``d: somebody else's.
    """
    if not gc.get_freeze_count() or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
