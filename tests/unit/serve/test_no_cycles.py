"""What a request makes goes when it ends: the collections of a server have nothing to find."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Callable

from sglite.runtime.engine.generation import Generation
from sglite.runtime.engine.presenter import Presenter
from sglite.runtime.protocol import FinishReason, RequestOutput
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.serve.merge import Bell, Merged
from sglite.runtime.text.chat_template import ChatTemplate

_TEMPLATE = (
    "{%- macro text(content) -%}{{ content }}{%- endmacro -%}"
    "{%- for message in messages -%}{% set said = text(message.content) %}[{{ message.role }}]{{ said }}{%- endfor -%}"
)


def left_by(action: Callable[[], object]) -> int:
    """Objects that only a collection lets go of, after the action has been done twice."""
    action()
    gc.collect()
    gc.disable()
    try:
        action()
        return gc.collect()
    finally:
        gc.enable()


def test_a_prompt_leaves_nothing() -> None:
    template = ChatTemplate(_TEMPLATE)
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hi"}]
    assert template.render(talk) == "[user]hello[assistant]hi"
    assert left_by(lambda: template.render(talk)) == 0


def test_a_generation_that_is_followed_leaves_nothing() -> None:
    end = FinishReason(type="length")

    async def follow() -> int:
        def begun() -> Generation:
            return Generation([Presenter("r", SamplingParams(), None, None)], lambda rid: None)

        async def read(one: Generation) -> int:
            counts = [progress.num_tokens async for _, (progress,) in Merged([one], Bell())]
            await one.ended()
            return counts[-1]

        async def once() -> None:
            one = begun()
            reading = asyncio.ensure_future(read(one))
            for at in range(3):
                await asyncio.sleep(0)
                reason = end if at == 2 else None
                one.push(RequestOutput(request_id="r", new_token_ids=[1], finish_reason=reason))
            assert await reading == 3

        await once()
        gc.collect()
        gc.disable()
        try:
            await once()
            return gc.collect()
        finally:
            gc.enable()

    assert asyncio.run(follow()) == 0


def test_what_was_there_is_left_out_of_collections() -> None:
    program = (
        "import gc; from sglite.runtime import garbage; rare = gc.get_threshold()[0];"
        "garbage.settle(); print(gc.get_freeze_count() > 1000, gc.get_threshold()[0] > rare)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["True", "True"]
