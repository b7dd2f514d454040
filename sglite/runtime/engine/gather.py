"""Outputs of several steps that came together, told as one: each telling costs more than the tokens in it."""

from __future__ import annotations

from collections.abc import Iterable

from sglite.runtime.protocol import RequestOutput


def gathered(outputs: Iterable[RequestOutput]) -> list[RequestOutput]:
    """One output a request, as if one step had given all of them; in the order in which the first of each came.

    They are taken over, and may be changed. What follows a terminal output stays apart.
    """
    found: list[RequestOutput] = []
    open_: dict[str, RequestOutput] = {}
    for output in outputs:
        whole = open_.get(output.request_id)
        if whole is None or whole.finish_reason is not None:
            open_[output.request_id] = output
            found.append(output)
            continue
        whole.new_token_ids += output.new_token_ids
        whole.logprobs += output.logprobs
        whole.prompt_logprobs += output.prompt_logprobs
        whole.accounting = output.accounting
        whole.finish_reason = output.finish_reason
        whole.constraint_complete = output.constraint_complete
        whole.constraint_filled = output.constraint_filled
        whole.hidden = output.hidden
    return found
