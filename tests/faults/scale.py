"""How much of an attack is carried out, and where its figures go.

``SGLITE_FAULTS``: ``quick`` (some minutes in all, on two cores) or ``full`` (the numbers of ``docs/reliability.md``).
"""

from __future__ import annotations

import os

WANTED = os.environ.get("SGLITE_FAULTS", "")
FULL = WANTED == "full"
PATIENCE = float(os.environ.get("SGLITE_FAULTS_PATIENCE", "1"))
"""Factor of every time limit, for machines on which others compute."""

figures: list[tuple[str, str, str]] = []
"""(attack, what was measured, figure), shown when the tests have ended. Filled by ``figure`` alone."""


def sized(quick: int, full: int) -> int:
    """How many."""
    return full if FULL else quick


def figure(attack: str, name: str, value: object) -> None:
    """Something that was measured."""
    figures.append((attack, name, str(value)))
