"""What Triton makes of kernels for an H100, which need not be there: a script, since tests run kernels interpreted.

    python tests/compiled_kernels.py MODULE NAME     calls MODULE.NAME, whose kernels are compiled, not started

Prints a line of JSON for every kernel that was made: its name, registers and bytes of local memory of a thread (what
did not fit into registers), bytes of shared memory and whether tensor cores are used.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(TRITON_INTERPRET="0", TRITON_DEFAULT_FP_FUSION="1")  # Triton 3.10 asks for the second

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Absent:
    """The driver of a device that is not there."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def report(name: str, kernel: Any) -> dict[str, object]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run([CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack, local = (int(re.search(rf"{field}:(\d+)", told)[1]) for field in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    return {
        "kernel": name,
        "registers": registers,
        "local": stack + local,
        "shared": kernel.metadata.shared,
        "tensor_cores": "mma" in kernel.asm["ptx"],
    }


def main(module: str, name: str) -> None:
    made: set[str] = set()

    def launcher(self: Any, grid: object) -> Any:
        def compiled(*args: object, **options: object) -> None:
            kernel = self.run(*args, grid=grid, warmup=True, **options)
            if kernel.hash not in made:
                made.add(kernel.hash)
                print(json.dumps(report(self.__name__, kernel)), flush=True)

        return compiled

    driver.set_active(Absent())
    JITFunction.__getitem__ = launcher
    getattr(importlib.import_module(module), name)()


if __name__ == "__main__":
    main(*sys.argv[1:])
