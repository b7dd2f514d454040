"""One gen: its request, what its text is read as, and its attempts.

An attempt whose text is no value of its type, or whose value its check refuses, is taken back; the next one is written
from the same cached prefix. Only ValueError, AssertionError and pydantic's ValidationError (a ValueError) refuse a
value; anything else is a bug of the check and ends the stream.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sglite.lang.backends.base import GenCall, Output, Stream, check_finished
from sglite.lang.cells import Cell, arrival
from sglite.lang.context import RunContext
from sglite.lang.errors import CheckFailed, Incomplete
from sglite.lang.ir import Gen, NodeRecord
from sglite.lang.session import SESSION

if TYPE_CHECKING:
    from sglite.lang.typed import TypeSpec

_RETRY_TEMPERATURE = 0.5
_RETRY_STEP = 0.25
_MAX_RETRY_TEMPERATURE = 1.5
"""A retry is sampled at least this freely, more so each time: at temperature 0 it would say the same again."""

Show = Callable[[str, dict[str, Any]], None]
"""Takes text as it comes, with what is known of its request."""


class Refused(ValueError):
    """A value that a check returned False for."""


async def generate(
    context: RunContext,
    stream: Stream,
    op: Gen,
    call_of: Callable[[int], GenCall],
    cell: Cell | None,
    record: NodeRecord,
    show: Show,
) -> tuple[str, Any]:
    """Runs ``op`` on ``stream``; the accepted text, which then belongs to the stream, and the value(s).

    ``call_of``: the request of an attempt. Text that may still be taken back is shown when it is accepted.
    """
    mark = stream.mark() if op.retries else None
    refused: list[tuple[str, str]] = []
    for attempt in range(op.retries + 1):
        call = bolder(call_of(attempt), attempt)
        open_ended = op.check is None and not op.retries
        outputs = await outputs_of(context, record, stream, call, show if open_ended else None, attempt)
        try:
            check_finished(outputs)
            value = await accepted(context, op, outputs, [text for text, _ in refused])
        except (ValueError, AssertionError) as error:
            if op.check is None and op.type is None:
                raise
            refused.append((outputs[0].text, str(error) or type(error).__name__))
            if attempt == op.retries:
                if not op.retries:
                    raise
                raise _gave_up(op, refused) from error
            stream.rewind(mark)
            continue
        if not open_ended:
            show(outputs[0].text, outputs[0].meta)
        if cell is not None:
            several = (call.sampling.n or 1) > 1
            metas: Any = [o.meta for o in outputs] if several else outputs[0].meta
            cell.resolve(value, metas, [o.text for o in outputs] if several else outputs[0].text)
        return outputs[0].text, value
    raise AssertionError("every attempt returns, raises or goes on")


async def outputs_of(
    context: RunContext,
    record: NodeRecord,
    stream: Stream,
    call: GenCall,
    show: Show | None = None,
    attempt: int = 0,
) -> tuple[Output, ...]:
    """The complete outputs of one request, which is accounted for; the first one's text is shown as it comes.

    BudgetExceeded when the run has no tokens left.
    """
    if context.budget is None:
        outputs = await _outputs_of(stream, call, show)
        _note(context, record, outputs, attempt)
        return outputs
    given, several = call.sampling.max_new_tokens, call.sampling.n or 1
    async with context.budget.share(None if given is None or given < 0 else given, several) as limit:
        within = replace(call, sampling=replace(call.sampling, max_new_tokens=limit))
        outputs = await _outputs_of(stream, within, show)
        before = context.usage.completion_tokens
        _note(context, record, outputs, attempt)
        context.budget.spend(context.usage.completion_tokens - before)
        return outputs


async def _outputs_of(stream: Stream, call: GenCall, show: Show | None) -> tuple[Output, ...]:
    outputs: tuple[Output, ...] = ()
    shown = 0
    async with aclosing(stream.generate(call)) as steps:
        async for outputs in steps:
            if show is not None:
                delta = outputs[0].text[shown:]
                shown += len(delta)
                show(delta, outputs[0].meta)
    return tuple(_with_calls(output) for output in outputs)


def _with_calls(output: Output) -> Output:
    """An output whose calls of tools are in its meta info too, where readers find them."""
    if not output.tool_calls:
        return output
    return replace(output, meta={**output.meta, "tool_calls": [call.to_dict() for call in output.tool_calls]})


async def accepted(context: RunContext, op: Gen, outputs: Sequence[Output], refused: Sequence[str]) -> Any:
    """The value of a gen's outputs (a list for several); the error that refuses it. What stands beside calls of tools
    is text, whatever the type: the answer is still to come."""
    values = [output.text if op.type is None or output.tool_calls else _read(op.type, output) for output in outputs]
    if outputs[0].text in refused:
        raise Refused("the same text as before")
    if op.check is not None:
        for value in values:
            await _check(context, op.check, value)
    return values if (op.sampling.n or 1) > 1 else values[0]


async def _check(context: RunContext, check: Callable[[Any], Any], value: Any) -> None:
    """Runs a check beside the programs' loop, which it must not hold up; only coroutines run there."""
    SESSION.inside.set(SESSION.inside.get() | {context.graph.program_id})  # in the context of this request alone
    SESSION.current.set(context.backend)
    if inspect.iscoroutinefunction(check):
        verdict = await check(value)
    else:
        # Not asyncio.to_thread: its few threads could all wait for programs whose own checks wait for a thread.
        verdict = await arrival(SESSION.checks.submit(lambda: check(value), nested=context.nested))
        if inspect.isawaitable(verdict):
            verdict = await verdict
    if verdict is False or (type(verdict).__name__ in ("bool", "bool_") and not verdict):  # numpy has its own False
        raise Refused(f"{getattr(check, '__name__', 'check')} returned False")


def _read(spec: TypeSpec, output: Output) -> Any:
    try:
        return spec.parse(output.text)
    except ValueError as error:
        reason = output.meta.get("finish_reason")
        if isinstance(reason, dict) and reason.get("type") == "length":
            from sglite.lang.typed_schema import type_name

            name = type_name(spec.type)
            raise Incomplete(
                f"{output.text[-60:]!r} was cut off by its token limit before it was a {name}; "
                'give max_tokens more room, or on_limit="close"',
                text=output.text,
                partial=spec.partial(output.text),
            ) from error
        raise


def bolder(call: GenCall, attempt: int) -> GenCall:
    """The request of a later attempt: sampled more freely than one that would repeat itself."""
    if attempt == 0:
        return call
    least = min(_MAX_RETRY_TEMPERATURE, _RETRY_TEMPERATURE + _RETRY_STEP * (attempt - 1))
    temperature = call.sampling.temperature
    if temperature is not None and temperature >= least:
        return call
    return replace(call, sampling=replace(call.sampling, temperature=least))


def _note(context: RunContext, record: NodeRecord, outputs: Sequence[Output], attempt: int) -> None:
    """Accounts for one request."""
    metas = [output.meta for output in outputs]
    context.usage.add(metas)
    context.usage.retries += attempt > 0
    record.attempts = attempt + 1
    record.meta = metas if len(metas) > 1 else metas[0] if metas else None
    record.metas.append(record.meta)
    record.text = outputs[0].text if outputs else ""
    record.token_ids = outputs[0].token_ids if outputs else None


def _gave_up(op: Gen, refused: list[tuple[str, str]]) -> CheckFailed:
    last, why = refused[-1]
    return CheckFailed(
        f"none of {len(refused)} attempts was accepted; the last, {last[:60]!r}: {why}; allow more retries, or say in "
        "the prompt what is wanted",
        attempts=refused,
    )
