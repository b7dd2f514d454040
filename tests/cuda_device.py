"""Where tests of the GPU's kernels run: on a GPU, or on the CPU in Triton's interpreter."""

from __future__ import annotations

import torch

from sglite.runtime.backend.kernels.device import INTERPRETED

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
