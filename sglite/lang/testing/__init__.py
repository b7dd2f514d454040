"""Testing programs without a model.

``Mock``: answers from a script. ``Recorder`` and ``Replay``: what a real run was answered, again. ``no_network``:
nothing leaves the machine meanwhile.

    def test_greeting():
        with Mock({"greeting": "Hello, Ada!"}) as mock:  # at the end: every answer was used, none was refused
            assert greet.run("Ada", backend=mock)["greeting"] == "Hello, Ada!"
        assert mock.prompts == ["USER: Please greet Ada.\\nASSISTANT: "]
"""

from __future__ import annotations

from sglite.lang.testing.answers import Call, Fail, Invalid, MockError, MockRequest, Say
from sglite.lang.testing.mock import Mock
from sglite.lang.testing.network import NetworkBlocked, no_network
from sglite.lang.testing.recorder import Recorder
from sglite.lang.testing.replay import Replay, ReplayError

__all__ = [
    "Call",
    "Fail",
    "Invalid",
    "Mock",
    "MockError",
    "MockRequest",
    "NetworkBlocked",
    "Recorder",
    "Replay",
    "ReplayError",
    "Say",
    "no_network",
]
