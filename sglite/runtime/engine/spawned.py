"""How an ``Engine`` comes to a core in a process of its own: ``Engine(..., launch=Spawned)``."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from sglite.runtime.config import EngineArgs
from sglite.runtime.engine.assemble import Launched
from sglite.runtime.engine.child import EngineProcess, Spawn
from sglite.runtime.engine.messages import LoadModel
from sglite.runtime.engine.remote import RemoteClient

if TYPE_CHECKING:
    from sglite.runtime.text.tokenizer import Tokenizer


class Spawned:
    """Launching: the core runs in a process of its own, which begins to start at once; see ``assemble.Launching``.

    Args:
        args: of the engine.
        restart: start the process again when it dies.
        spawn: starts one.
    """

    def __init__(self, args: EngineArgs, restart: bool = False, spawn: Spawn = EngineProcess) -> None:
        self._args = args
        self._restart = restart
        self._spawn = spawn
        self._process = spawn()
        self._client: RemoteClient | None = None
        self._folder = ""

    def load(self, folder: Path) -> None:
        """See ``Launching``."""
        self._folder = str(folder)
        self._process.load(self._order(self._args))

    def finish(self, tokenizer: Tokenizer | None) -> Launched:
        """See ``Launching``; the process reads a tokenizer of its own."""
        loaded = self._process.loaded()
        config = loaded.config
        again = dataclasses.replace(  # of the same size, which others have been told
            self._args,
            context_length=config.context_length,
            max_total_tokens=config.max_total_tokens,
            mem_fraction_static=None,
            show_progress=False,
        )
        restart = (self._spawn, self._order(again)) if self._restart else None
        self._client = RemoteClient(self._process, loaded.statistics, restart)
        return Launched(self._client, config, loaded.eos_ids, loaded.weight_bytes)

    def cancel(self) -> None:
        """Ends the process, whichever it is by now, at once."""
        if self._client is not None:
            self._client.kill()
        else:
            self._process.kill()
            self._process.end()

    def _order(self, args: EngineArgs) -> LoadModel:
        level = logging.getLogger("sglite").getEffectiveLevel()
        return LoadModel(args=args, folder=self._folder, log_level=level)
