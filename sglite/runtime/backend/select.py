"""Which backend runs: the one place that names them all."""

from __future__ import annotations

import importlib.util

import torch

from sglite.runtime.backend.base import Backend, BackendError
from sglite.runtime.backend.cpu_native import cpu_backend


def backend_for(
    device: str = "auto",
    *,
    num_threads: int | None = None,
    cpu_kernels: str = "auto",
    attention: str = "auto",
    cascade: str = "auto",
    deterministic: bool = False,
) -> Backend:
    """``auto``: an NVIDIA GPU where there is one and Triton is installed, else the CPU.

    Arguments are those of ``EngineArgs``. Raises BackendError for what is not there, and for what the device that was
    chosen has no use for.
    """
    triton = importlib.util.find_spec("triton") is not None
    if device == "auto":
        device = "cuda" if triton and torch.cuda.is_available() else "cpu"
    if device == "cpu":
        for name, value in (("attention_backend", attention), ("cascade_attention", cascade)):
            if value != "auto":
                raise BackendError(f"{name}={value!r} is for GPUs and this engine runs on the cpu; leave it out")
        if deterministic:
            raise BackendError(
                "enable_deterministic_inference=True is for GPUs and this engine runs on cpu, where greedy output in "
                "float32 does not depend on the batch: use dtype='float32'"
            )
        return cpu_backend(num_threads, cpu_kernels)
    if not triton:
        raise BackendError("device='cuda': Triton is not installed; pip install 'sglite[cuda]', or use cpu")
    from sglite.runtime.backend.cuda import cuda_backend  # needs triton

    return cuda_backend(attention, cascade=cascade, deterministic=deterministic)
