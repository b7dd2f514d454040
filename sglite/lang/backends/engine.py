"""An Engine in this process: the one door from the language to the runtime.

The engine is known by what it can do (``engine_like``), so nothing of the runtime is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglite.lang.backends.base import Backend, Stream
from sglite.lang.backends.engine_like import EngineLike
from sglite.lang.backends.engine_stream import EngineStream, encode
from sglite.lang.formats import ChatFormat
from sglite.lang.messages import Message, ToolSpec


class EngineFormat:
    """How the engine's model spells its turns: derived from the model's own chat template."""

    stop: tuple[str, ...] = ()  # the engine itself knows the tokens that end a turn

    def __init__(self, engine: EngineLike) -> None:
        self._engine = engine

    @property
    def default_system(self) -> str | None:
        """What the model's template says where a conversation does not start with a system turn."""
        return self._engine.default_system

    def turn(self, role: str, *, first: bool) -> tuple[str, str]:
        """See ChatFormat."""
        return self._engine.turn(role, first)


class EngineBackend(Backend):
    """``engine`` as a back end. ValueError for an engine without tokenizer."""

    closes = True
    heals = True

    def __init__(self, engine: EngineLike) -> None:
        if engine.tokenizer is None:
            raise ValueError("programs are text: this engine was made without a tokenizer (skip_tokenizer_init=True)")
        self.engine = engine
        self.tokenizer = engine.tokenizer

    def chat_format(self) -> ChatFormat:
        """See Backend."""
        return EngineFormat(self.engine)

    def open(self, program_id: str) -> Stream:
        """See Backend."""
        return EngineStream(self.engine, self.tokenizer, program_id, self.engine.open_sequence(program_id))

    def render(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> str | None:
        """See Backend."""
        if self.engine.chat_template is None:
            return None
        named = [tool.to_dict() for tool in tools]
        return self.engine.chat_template.render(messages, tools=named or None, add_generation_prompt=True)

    def token_count(self, text: str, *, first: bool = False) -> int:
        """Tokens that ``text`` takes; ``first``: at the start of a sequence. Blocks as long as encoding does."""
        return len(self.tokenizer.encode(text, add_bos=first))

    async def prefill(self, text: str) -> None:
        """See Backend. The text may end inside a token of those who go on from it: its last one is left to them."""
        ids = await encode(self.tokenizer, text, first=True)
        ids = ids[:-1] or ids
        sequence = self.engine.open_sequence("", ids)
        try:
            await sequence.generate({"max_new_tokens": 0, "temperature": 0.0}).wait()
        finally:
            sequence.rewind(len(ids))
            sequence.close()

    def flush_cache(self) -> bool:
        """See Backend."""
        return bool(self.engine.flush_cache())

    def get_server_info(self) -> dict[str, Any]:
        """See Backend."""
        return dict(self.engine.get_server_info())
