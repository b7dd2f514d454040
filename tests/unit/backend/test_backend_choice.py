"""Which backend an engine gets, and what is said where it cannot have the one it asks for."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from sglite.runtime.backend.base import BackendError
from sglite.runtime.backend.cpu import CPUBackend
from sglite.runtime.backend.kernels import device
from sglite.runtime.backend.select import backend_for


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_cpu_is_taken() -> None:
    backend = backend_for(cpu_kernels="torch")
    assert type(backend) is CPUBackend and backend.name == "cpu"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attention": "triton"}, "attention_backend='triton' is for GPUs"),
        ({"attention": "flashinfer"}, "attention_backend='flashinfer' is for GPUs"),
        ({"cascade": "never"}, "cascade_attention='never' is for GPUs"),
        ({"deterministic": True}, "enable_deterministic_inference=True is for GPUs"),
    ],
)
def test_what_is_for_gpus_is_refused_on_the_cpu(given: dict[str, object], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        backend_for("cpu", **given)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_missed_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from sglite.runtime.backend import cuda

    monkeypatch.setattr(cuda, "INTERPRETED", False)
    with pytest.raises(BackendError, match="sees no NVIDIA GPU"):
        backend_for("cuda")


def test_an_old_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from sglite.runtime.backend import cuda

    monkeypatch.setattr(cuda, "INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(BackendError, match=r"Tesla T4 has compute capability 7\.5; 8\.0 or newer"):
        backend_for("cuda")


def test_triton_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else found(name))
    with pytest.raises(BackendError, match=r"pip install 'sglite\[cuda\]'"):
        backend_for("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backend_for(cpu_kernels="torch").name == "cpu"


@pytest.mark.skipif(not device.INTERPRETED, reason="kernels run on a GPU here")
def test_the_interpreter_says_what_it_is() -> None:
    backend = backend_for("cuda")
    assert backend.device.type == "cpu" and backend.name == "cuda" and "interpreter" in backend.describe()
