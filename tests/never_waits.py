"""That host code never waits for the device: on a GPU torch itself says so, elsewhere calls that would are refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from cuda_device import DEVICE
from torch import Tensor

WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "bincount", "masked_select", "unique", "__bool__", "__int__")
"""Methods, and functions of torch by the same names, whose results, or the sizes of those, the host must know."""


def _refused(name: str) -> Callable[..., Any]:
    def call(*args: object, **options: object) -> Any:
        raise AssertionError(f"{name} waits for the device")

    return call


def _by_mask(name: str) -> Callable[..., Any]:
    plain = getattr(Tensor, name)

    def call(self: Tensor, at: object, *value: object) -> Any:
        parts = at if isinstance(at, tuple) else (at,)
        masks = [part for part in parts if isinstance(part, Tensor) and part.dtype == torch.bool]
        assert not masks, f"{name} by a mask waits for the device"
        return plain(self, at, *value)

    return call


@contextmanager
def never_waits() -> Iterator[None]:
    """AssertionError, or on a GPU torch's own RuntimeError, where something waits."""
    if DEVICE.type == "cpu":
        with ExitStack() as stack:
            for name in WAITS:
                for owner in (Tensor, torch):
                    if hasattr(owner, name):
                        stack.enter_context(patch.object(owner, name, _refused(name)))
            for name in ("__getitem__", "__setitem__"):
                stack.enter_context(patch.object(Tensor, name, _by_mask(name)))
            yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
