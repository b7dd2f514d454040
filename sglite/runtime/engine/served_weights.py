"""The weights that an engine computes with, as its user sees them: where they are from, what they are called, orders.

A version is a name that the user gives to weights; every output says with which it ended. It is known here only: what
keeps cached prefixes of different weights apart is not its name.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from sglite.runtime.engine.client import EngineClient
from sglite.runtime.engine.weight_version import WeightVersion, check_version
from sglite.runtime.protocol import ReadWeights, UpdateWeights, WeightsResult

LOAD_FORMATS = (None, "auto", "safetensors")


class ServedWeights:
    """The weights of one engine.

    Args:
        client: the engine.
        path: where the first ones are from.
        version: what they are called.
    """

    def __init__(self, client: EngineClient, path: str, version: str) -> None:
        self._client = client
        self.path = path
        """Folder or name of the checkpoint that was loaded last, as it was given."""
        self.version = WeightVersion(version)

    def update(self, order: UpdateWeights, version: str | None = None) -> Future[WeightsResult]:
        """Replace weights; ``version``: what they are called from then on. See ``engine.weights`` for when."""
        if version is not None:
            check_version(version)
        outcome: Future[WeightsResult] = Future()
        outcome.set_running_or_notify_cancel()  # it is carried out whoever waits

        def note(done: Future[WeightsResult]) -> None:
            if (error := done.exception()) is not None:
                outcome.set_exception(error)
            else:
                outcome.set_result(self._note(order, version, done.result()))

        self._client.weights(order).add_done_callback(note)
        return outcome

    def _note(self, order: UpdateWeights, version: str | None, result: WeightsResult) -> WeightsResult:
        """Before anybody hears that weights have changed, it is known here."""
        if not result.success:
            return result
        if order.tensors is None:
            self.path = order.folder
        if version is not None:
            self.version.name = version
        what = f"the weights of {order.folder}" if order.tensors is None else "the tensors"
        message = f"{what} are in use" + ("" if version is None else f", as version {version}")
        return WeightsResult(success=True, message=message, num_paused_requests=result.num_paused_requests)

    def rename(self, version: str) -> None:
        """The weights stay, and are called ``version`` from now on."""
        check_version(version)
        self.version.name = version

    def read(self, name: str, rows: int) -> Future[WeightsResult]:
        """The first ``rows`` rows of a tensor, by its name in a checkpoint; ``values`` of the result."""
        return self._client.weights(ReadWeights(name=name, rows=rows))


def check_format(load_format: Any, where: str) -> None:
    """``ValueError`` for a format that is not read. ``where``: what comes in it."""
    if load_format not in LOAD_FORMATS:
        shown = repr(load_format)[:80]
        raise ValueError(f"load_format={shown} is not supported: {where} are read as safetensors; leave it out")
