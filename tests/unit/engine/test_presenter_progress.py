"""What is taken of a request's outputs at a moment stays what it was, and news are parts of the whole event."""

from __future__ import annotations

import codecs
import random
from typing import cast

from sglite.runtime.engine.presenter import LogprobLayout, Presenter, Progress
from sglite.runtime.engine.weight_version import WeightVersion
from sglite.runtime.protocol import Accounting, FinishReason, RequestOutput, TokenLogprob
from sglite.runtime.sample.params import SamplingParams
from sglite.runtime.text.tokenizer import Tokenizer


def outputs(rng: random.Random, count: int) -> list[RequestOutput]:
    """Some steps' worth of tokens with their logprobs; the last one ends it."""
    made: list[RequestOutput] = []
    for at in range(count):
        ids = [rng.randrange(50) for _ in range(rng.randint(1, 3))]
        rows = [TokenLogprob(one, -one / 10, [(one, -one / 10), (one + 1, -9.0)], [(7, -7.0)]) for one in ids]
        made.append(
            RequestOutput(
                request_id="r",
                new_token_ids=ids,
                logprobs=rows,
                prompt_logprobs=[] if at else [TokenLogprob(1, None), TokenLogprob(2, -0.5, [(2, -0.5)], [(7, -7.0)])],
                finish_reason=FinishReason(type="length") if at == count - 1 else None,
                accounting=Accounting(prompt_tokens=2, forward_passes=at + 1, e2e_ms=at),
            )
        )
    return made


def test_progress_stays_what_it_was_while_its_presenter_goes_on() -> None:
    layout = LogprobLayout(top_n=2, given=True)
    presenter = Presenter("r", SamplingParams(), None, layout)
    taken: list[Progress] = []
    events = []
    for output in outputs(random.Random(5), 12):
        presenter.add(output)
        taken.append(presenter.progress())
        events.append(presenter.progress().event())
    assert [one.event() for one in taken] == events
    assert [len(event["output_ids"]) for event in events] == [one.num_tokens for one in taken]
    assert events[0]["meta_info"]["finish_reason"] is None
    assert events[-1]["meta_info"]["finish_reason"] == {"type": "length", "length": taken[-1].num_tokens}
    assert len(events[0]["meta_info"]["input_token_logprobs"]) == 2


def test_news_put_together_are_the_whole() -> None:
    presenter = Presenter("r", SamplingParams(), None, LogprobLayout(top_n=2))
    ids, rows, tops = [], [], []
    for output in outputs(random.Random(6), 9):
        presenter.add(output)
        progress = presenter.progress()
        ids += progress.ids(len(ids))
        more = progress.logprobs(len(rows))
        rows, tops = rows + more[0], tops + more[1]
    whole = presenter.progress().event()
    assert whole["output_ids"] == ids
    assert whole["meta_info"]["output_token_logprobs"] == rows and whole["meta_info"]["output_top_logprobs"] == tops


class Bytes:
    """A tokenizer whose ids are bytes."""

    special_token_ids: frozenset[int] = frozenset()

    def pieces(self, ids: list[int], **_: object) -> list[bytes]:
        return [bytes([one]) for one in ids]


def test_the_text_so_far_has_whole_characters_whatever_the_bytes_are_cut_into() -> None:
    rng = random.Random(7)
    for _ in range(300):
        text = "".join(rng.choice("aé漢😀") for _ in range(rng.randint(0, 8))).encode()
        data = bytes(byte if rng.random() < 0.9 else rng.randrange(256) for byte in text)
        presenter = Presenter("r", SamplingParams(), cast(Tokenizer, Bytes()), None)
        decoder, want, at = codecs.getincrementaldecoder("utf-8")("replace"), "", 0
        while at < len(data):
            end = rng.randint(at + 1, len(data))
            presenter.add(RequestOutput(request_id="r", new_token_ids=list(data[at:end])))
            want += decoder.decode(data[at:end])
            assert presenter.progress().text == want
            at = end
        presenter.add(RequestOutput(request_id="r", finish_reason=FinishReason(type="length")))
        assert presenter.progress().text == data.decode("utf-8", "replace")


def test_weights_that_computed_nothing_are_not_named() -> None:
    weights = WeightVersion("a")
    presenter = Presenter("r", SamplingParams(), None, None, weights=weights)

    def add(name: str, *ids: int, reason: FinishReason | None = None) -> Progress:
        weights.name = name
        presenter.add(RequestOutput(request_id="r", new_token_ids=list(ids), finish_reason=reason))
        return presenter.progress()

    assert add("b").versions == (("b", 0),)
    first = add("b", 1, 2)
    assert add("c").versions == first.versions == (("b", 0),)
    add("d", 3)
    add("b", 4, 5)
    meta = add("e", reason=FinishReason(type="abort")).event()["meta_info"]
    spans = [("b", 0, 2), ("d", 2, 3), ("b", 3, 5)]
    assert meta["weight_versions"] == [{"version": name, "start": start, "end": end} for name, start, end in spans]
    assert meta["weight_version"] == "b" and first.versions == (("b", 0),)


def test_an_output_without_tokens_has_one_empty_span() -> None:
    presenter = Presenter("r", SamplingParams(), None, None, weights=WeightVersion("a"))
    presenter.add(RequestOutput(request_id="r", new_token_ids=[], finish_reason=FinishReason(type="abort")))
    assert presenter.progress().event()["meta_info"]["weight_versions"] == [{"version": "a", "start": 0, "end": 0}]
