"""``sglite version [--json]``: what is installed. Imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
from collections.abc import Sequence
from typing import Any

from sglite.cli_parser import Parser
from sglite.version import __version__

PACKAGES = ("torch", "xgrammar", "fastapi", "uvicorn", "tokenizers", "huggingface_hub", "httpx", "pydantic")
"""Packages whose versions tell most when something goes wrong."""


def version(argv: Sequence[str]) -> int:
    """The command."""
    parser = Parser(prog="sglite version", description="What is installed.")
    parser.add_argument("--json", action="store_true", help="as one JSON object")
    given = parser.read(argv)
    found = facts()
    if given.json:
        print(json.dumps(found))
        return 0
    print(f"sglite {found['version']}, wire protocol {found['protocol_version']}")
    print(f"Python {found['python']} on {found['platform']}")
    for name, installed in found["packages"].items():
        print(f"  {name:<16} {installed or 'not installed'}")
    return 0


def facts() -> dict[str, Any]:
    """``version``, ``protocol_version`` (of programs over HTTP), ``python``, ``platform``, ``packages``."""
    return {
        "version": __version__,
        "protocol_version": protocol_version(),
        "python": platform.python_version(),
        "implementation": sys.implementation.name,
        "platform": platform.platform(),
        "packages": {name: installed(name) for name in PACKAGES},
    }


def installed(package: str) -> str | None:
    """The version of a package, without importing it; None: it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def protocol_version() -> int:
    """Of the program extension that this version's server and client speak."""
    from sglite.runtime.serve.program_nodes import PROGRAM_VERSION

    return PROGRAM_VERSION
