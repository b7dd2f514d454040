"""Names of quantisation: what configurations call it, what callers may ask for, what people are told.

A checkpoint says how it is quantised in ``config.json`` (``quantization_config``); older exports say it in a file of
their own, which is read into the same form.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sglite.runtime.model.errors import ModelError
from sglite.runtime.model.fields import Fields, read_json

REQUESTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "fp8": ("fp8",),
        "compressed-tensors": ("compressed-tensors",),
        "w8a8_int8": ("compressed-tensors",),
        "w8a8_fp8": ("compressed-tensors",),
        "awq": ("awq",),
        "awq_marlin": ("awq",),
        "gptq": ("gptq",),
        "gptq_marlin": ("gptq",),
        "moe_wna16": ("awq", "gptq"),
        "mxfp4": ("mxfp4",),
        "modelopt": ("modelopt",),
        "modelopt_fp8": ("modelopt",),
        "gguf": ("gguf",),
    }
)
"""What callers may ask for, as SGLang and vLLM spell it -> the methods that it agrees with."""
WHILE_LOADING = ("int8", "int4")
"""What an unquantised checkpoint may be quantised to while it is loaded."""
INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "bitsandbytes": "the unquantised checkpoint, or one in AWQ or GPTQ",
        "quark": "the unquantised checkpoint, or one in FP8, AWQ or MXFP4",
        "auto-round": "its export in format auto_gptq or auto_awq",
        "fbgemm_fp8": "an FP8 checkpoint of compressed-tensors",
        "hqq": "the unquantised checkpoint, or one in AWQ or GPTQ",
        "torchao": "the unquantised checkpoint, or one of compressed-tensors",
        "aqlm": "the unquantised checkpoint, or one in AWQ or GPTQ",
    }
)
"""Methods that are not served -> what to use."""


def normalised(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``settings`` with the ``quant_method`` that they mean: ``modelopt_fp8`` is ``modelopt``, and so on."""
    method = settings.get("quant_method")
    aliases = {"modelopt_fp8": "modelopt", "modelopt_fp4": "modelopt", "compressed_tensors": "compressed-tensors"}
    return {**settings, **({"quant_method": aliases[method]} if method in aliases else {})}


def exported_settings(folder: Path) -> dict[str, Any] | None:
    """What older exports say beside ``config.json``, as ``quantization_config`` says it; ``None``: nothing."""
    for name in ("quantize_config.json", "quant_config.json"):
        if (folder / name).is_file():
            found = read_json(folder / name)
            awq = "zero_point" in found or "w_bit" in found
            return {"quant_method": "awq" if awq else "gptq", **found}
    path = folder / "hf_quant_config.json"
    if path.is_file():
        inner = Fields(read_json(path), str(path)).mapping("quantization")
        return {"quant_method": "modelopt", **inner}
    return None


def summary(settings: Mapping[str, Any]) -> str:
    """Method and bits for people: ``gptq, 4 bits``."""
    method = str(settings.get("quant_method"))
    bits = sorted(_bits(settings, method))
    return f"{method}, {' and '.join(map(str, bits))} bits" if bits else method


def _bits(settings: Mapping[str, Any], method: str) -> set[int]:
    groups = settings.get("config_groups")
    if method == "compressed-tensors" and isinstance(groups, dict):
        weights = [group.get("weights") or {} for group in groups.values() if isinstance(group, dict)]
        return {each["num_bits"] for each in weights if isinstance(each.get("num_bits"), int)}
    known = {"fp8": 8, "modelopt": 8, "mxfp4": 4, "awq": 4}
    given = settings.get("bits", settings.get("w_bit"))
    return {given} if isinstance(given, int) else {known[method]} if method in known else set()


def check_request(requested: str | None, settings: Mapping[str, Any] | None, where: Path) -> None:
    """ModelError where a caller asked for another quantisation than the checkpoint has."""
    if requested is None or requested == "auto" or (settings is None and requested in WHILE_LOADING):
        return
    if settings is None:
        raise ModelError(
            f"quantization={requested!r}: {where} is not quantised; leave it out, give a quantised checkpoint, or have "
            f"it quantised while it is loaded, with {' or '.join(WHILE_LOADING)}"
        )
    found = normalised(settings).get("quant_method")
    if requested in WHILE_LOADING:
        raise ModelError(
            f"quantization={requested!r}: {where} is quantised already, with {found}, and is not quantised a second "
            "time; leave it out, or give the unquantised checkpoint"
        )
    if found not in REQUESTS[requested]:
        raise ModelError(f"quantization={requested!r}: {where} is quantised with {found}; leave it out")
