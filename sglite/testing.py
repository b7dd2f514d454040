"""``sglite.lang.testing`` under the name that programs import: ``from sglite.testing import Mock``."""

from __future__ import annotations

from sglite.lang.testing import *  # noqa: F403
from sglite.lang.testing import __all__ as __all__
