"""What a backend is told about the draws of a step, a number a row, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """How each of n rows is drawn from; tensors on the host."""

    temperatures: Tensor
    """[n] float32; 0: the first id of the largest logit is taken, whatever else is said."""
    top_k: Tensor
    """[n] int32; 0: all."""
    top_p: Tensor
    """[n] float64, in (0, 1]."""
    min_p: Tensor
    """[n] float64, in [0, 1]."""
    uniforms: Tensor
    """[n] float64 in [0, 1): the random number of each row."""

    def of(self, places: Tensor) -> Draws:
        """Those of some rows: ``places`` [m] int64, on the host."""
        return Draws(
            self.temperatures[places],
            self.top_k[places],
            self.top_p[places],
            self.min_p[places],
            self.uniforms[places],
        )


class Sampled(NamedTuple):
    """What came of n rows; tensors on the device."""

    ids: Tensor
    """[n] int64; of a row with nothing to choose from, or with numbers that are not finite, any id."""
    peaks: Tensor
    """[n] float32: the largest logit before masks; NaN where any is NaN."""
    left: Tensor
    """[n] float32: the largest logit that the mask leaves; -inf: it leaves none."""
