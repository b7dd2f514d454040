"""Why a model cannot be used. One line: what happened, the offending value, what to do."""

from __future__ import annotations


class ModelError(ValueError):
    """A model folder, configuration, checkpoint or hub name that cannot be used."""


class CheckpointMismatch(ModelError):
    """The checkpoint's tensors are not those of the model; the message names the first, the attributes all."""

    def __init__(
        self, message: str, *, missing: tuple[str, ...], unexpected: tuple[str, ...], wrong_shape: tuple[str, ...]
    ) -> None:
        super().__init__(message)
        self.missing = missing
        self.unexpected = unexpected
        self.wrong_shape = wrong_shape
