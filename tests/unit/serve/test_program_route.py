"""POST /program keeps a program's sequences: nodes run in order, text goes once, and a client that is gone leaks
nothing."""

from __future__ import annotations

import itertools
import json
import socket
from typing import Any

import pytest
from served import IDLE, Served, settles

_PROGRAMS = itertools.count()


class Program:
    """A client of the protocol, call by call."""

    def __init__(self, server: Served, lease_s: float = 60.0) -> None:
        self.server = server
        self.lease_s = lease_s
        self.name = f"test-{next(_PROGRAMS)}"

    def body(self, *nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"version": 1, "program": self.name, "lease_s": self.lease_s, "nodes": list(nodes), **more}

    def call(self, *nodes: dict[str, Any], **more: Any) -> dict[str, list[dict[str, Any]]]:
        """Events by node."""
        response = self.server.http.post("/program", json=self.body(*nodes, **more))
        assert response.status_code == 200, response.text
        lines = [json.loads(line) for line in response.text.split("\n") if line]
        assert lines.pop() == {"end": True}
        found: dict[str, list[dict[str, Any]]] = {}
        for line in lines:
            found.setdefault(line["node"], []).append(line)
        for each in found.values():
            assert [event.get("done", False) for event in each] == [False] * (len(each) - 1) + [True]
        return found

    def refused(self, status: int, *nodes: dict[str, Any], **more: Any) -> str:
        return str(self.server.post("/program", self.body(*nodes, **more), status)["error"]["message"])

    def close(self, *seqs: str) -> None:
        self.call(*({"op": "close", "seq": seq} for seq in seqs))


def opened(seq: str = "0") -> dict[str, Any]:
    return {"op": "open", "seq": seq}


def extend(text: str, seq: str = "0") -> dict[str, Any]:
    return {"op": "extend", "seq": seq, "text": text}


def gen(id: str, seq: str = "0", n: int = 5, **fields: Any) -> dict[str, Any]:
    params = {"temperature": 0.0, "max_new_tokens": n, **fields.pop("sampling_params", {})}
    return {"op": "generate", "id": id, "seq": seq, "sampling_params": params, **fields}


def text(events: list[dict[str, Any]]) -> str:
    return str(events[-1]["outputs"][0]["text"])


def meta(events: list[dict[str, Any]]) -> dict[str, Any]:
    return dict(events[-1]["outputs"][0]["meta_info"])


@pytest.mark.parametrize("calls", [1, 5])
@pytest.mark.parametrize("stream", [False, True])
def test_nodes_give_what_the_engines_sequence_gives_however_they_are_sent(
    server: Served, calls: int, stream: bool
) -> None:
    engine = server.engine
    assert engine.tokenizer is not None
    own, expected = engine.open_sequence(), []
    for literal in ("The first: ", "\nThe second: "):
        own.extend(engine.tokenizer.encode(literal))
        expected.append(own.generate({"temperature": 0.0, "max_new_tokens": 5}).result()["text"])
    own.close()
    nodes = [opened(), extend("The fir"), extend("st: "), gen("a", stream=stream), extend("\nThe second: "), gen("b")]
    program, found = Program(server), {}
    for index in range(calls):
        share = nodes[index * len(nodes) // calls : (index + 1) * len(nodes) // calls]
        found.update(program.call(*share))
    program.close("0")
    assert [text(found["a"]), text(found["b"])] == expected
    assert (len(found["a"]) > 1) == stream


def test_a_chain_computes_every_prompt_token_once(server: Served) -> None:
    server.post("/flush_cache", {})
    nodes: list[dict[str, Any]] = [opened()]
    for index in range(6):
        nodes += [extend(f" Number {index}:"), gen(f"g{index}", n=4)]
    program = Program(server)
    found = program.call(*nodes, {"op": "close", "seq": "0"})
    metas = [meta(found[f"g{index}"]) for index in range(6)]
    assert all(m["prompt_tokens"] == m["cached_tokens"] + m["computed_prompt_tokens"] for m in metas)
    literals = sum(len(server.engine.tokenizer.encode(f" Number {i}:", add_bos=not i)) for i in range(6))  # type: ignore[union-attr]
    # Each output's last token is computed as a part of the next prompt.
    assert sum(m["computed_prompt_tokens"] for m in metas) == literals + 5


def test_branches_start_from_the_fork_and_compute_it_once(server: Served) -> None:
    server.post("/flush_cache", {})
    prefix = "A prefix of some length that three branches share. "
    program = Program(server)
    names = ["x", "y", "z"]
    found = program.call(
        opened(), extend(prefix), {"op": "fork", "id": "f", "seq": "0", "into": names},
        *(node for name in names for node in (extend(f"Branch {name}:", name), gen(name, name))),
    )  # fmt: skip
    program.close("0", *names)
    encode = server.engine.tokenizer.encode  # type: ignore[union-attr]
    shared = len(encode(prefix, add_bos=True))
    for name in names:
        assert meta(found[name])["cached_tokens"] >= shared
        assert meta(found[name])["prompt_tokens"] == shared + len(encode(f"Branch {name}:"))


def test_truncate_takes_back_to_a_place_and_frees_what_was_stuck(server: Served) -> None:
    program = Program(server)
    first = program.call(opened(), extend("One"), gen("a"), extend(" two"), gen("b"))
    again = program.call({"op": "truncate", "seq": "0", "after": "a"}, extend(" two"), gen("c"))
    assert text(again["c"]) == text(first["b"])
    stuck = program.call(gen("d", sampling_params={"top_p": 7}), extend(" x"), gen("e"))
    assert "top_p" in stuck["d"][-1]["error"]["message"]
    assert "not carried out" in stuck["e"][-1]["error"]["message"] and "top_p" in stuck["e"][-1]["error"]["message"]
    assert "top_p" in program.call(gen("f"))["f"][-1]["error"]["message"]
    back = program.call({"op": "truncate", "seq": "0"}, extend("One"), gen("g"))
    assert text(back["g"]) == text(first["a"])
    unknown = program.call({"op": "truncate", "id": "t", "seq": "0", "after": "nowhere"})
    assert "nowhere" in unknown["t"][-1]["error"]["message"]
    program.close("0")


def test_scores_are_those_of_the_whole_text_and_leave_the_sequence_alone(server: Served) -> None:
    program = Program(server)
    choices = [" red", " green", " blue green"]
    score = {"op": "score", "id": "s", "seq": "0", "choices": choices, "unconditional": True}
    found = program.call(opened(), extend("The colour is"), score, gen("after"))
    program.close("0")
    alone = server.engine.generate("The colour is", {"temperature": 0.0, "max_new_tokens": 5})
    assert text(found["after"]) == alone["text"]
    for choice, scored in zip(choices, found["s"][-1]["scores"], strict=True):
        whole = server.engine.generate(
            "The colour is" + choice, {"max_new_tokens": 0}, return_logprob=True, logprob_start_len=0
        )
        rows = scored["input_token_logprobs"]
        assert [r[1] for r in rows] == [r[1] for r in whole["meta_info"]["input_token_logprobs"][-len(rows) :]]
        for row, other in zip(rows, whole["meta_info"]["input_token_logprobs"][-len(rows) :], strict=True):
            assert abs(row[0] - other[0]) < 1e-3
    assert len(found["s"][-1]["unconditional"]) == 3


def test_abort_ends_what_is_under_way_and_what_is_behind_it(server: Served) -> None:
    program = Program(server)
    with server.http.stream(
        "POST",
        "/program",
        json=program.body(
            opened(), extend("x"), gen("long", n=1500, sampling_params={"ignore_eos": True}), gen("next")
        ),
    ) as response:
        lines = response.iter_lines()
        assert settles(lambda: server.info()["num_open_requests"] == 2)
        program.call({"op": "abort", "seq": "0", "target": "long"})
        found = {event["node"]: event for event in map(json.loads, filter(None, lines)) if "node" in event}
    assert found["long"]["outputs"][0]["meta_info"]["finish_reason"]["type"] == "abort"
    assert found["next"]["outputs"][0]["meta_info"]["finish_reason"]["type"] == "abort"
    program.close("0")


@pytest.mark.parametrize(
    "nodes, named",
    [
        ([{"op": "jump", "seq": "0"}], "jump"),
        ([{"op": "extend", "seq": "0"}], "text"),
        ([opened(), {**extend("x"), "txt": 1}], "txt"),
        ([opened(), {"op": "generate", "seq": "0", "stream": "yes"}], "stream"),
        ([opened(), {"op": "generate", "seq": "0", "hints": {"nod": 1}}], "nod"),
        ([opened(), opened()], "open already"),
        ([opened(), gen("a"), gen("a")], "given twice"),
        ([opened(), {"op": "fork", "seq": "0", "into": ["0"]}], "open already"),
        ([opened(), {"op": "fork", "seq": "0", "into": []}], "into"),
        ([opened(), {"op": "score", "seq": "0", "choices": []}], "choices"),
        ([opened()] * 5000, "4096"),
        ("x", "nodes"),
    ],
)
def test_a_call_that_is_wrong_anywhere_is_refused_whole(server: Served, nodes: Any, named: str) -> None:
    program = Program(server)
    error = server.post("/program", {**program.body(), "nodes": nodes}, 400)["error"]
    assert named in error["message"]
    assert server.load() == IDLE


def test_what_the_session_is_not_is_said(server: Served) -> None:
    program = Program(server)
    assert "version 2" in program.refused(400, version=2)
    assert "lease_s" in program.refused(400, lease_s=0)
    assert program.name in program.refused(404, gen("a"))
    program.call(opened(), call=5)
    assert "'1'" in program.refused(404, gen("a", "1"))
    assert "call 5" in program.refused(409, extend("x"), call=5)
    program.call(extend("x"), {"op": "close", "seq": "0"}, call=6)
    program.refused(404, extend("x"), call=7)


def test_the_number_of_sequences_is_bounded(server: Served) -> None:
    program = Program(server)
    many = [{"op": "fork", "seq": "0", "into": [f"{i}.{k}" for k in range(1000)]} for i in range(5)]
    assert "4096" in program.refused(429, opened(), *many)


def test_a_program_that_nobody_renews_is_closed_with_all_it_has(server: Served) -> None:
    program, kept = Program(server, lease_s=1.0), Program(server, lease_s=1.0)
    program.call(opened(), extend("Something"), gen("a"), {"op": "fork", "seq": "0", "into": ["1", "2"]})
    kept.call(opened())
    expired = server.info()["programs"]["expired"]
    assert server.load() != IDLE

    def only_one_is_left() -> bool:
        assert server.post("/program/renew", {"programs": [kept.name]}) == {"unknown": []}
        return bool(server.info()["programs"]["sessions"] == 1)

    assert settles(only_one_is_left, 5.0)
    assert server.info()["programs"]["expired"] == expired + 1
    assert "lease" in program.refused(410, gen("b"))
    assert server.post("/program/renew", {"programs": [program.name]}) == {"unknown": [program.name]}
    kept.close("0")


def test_a_call_whose_client_goes_away_is_aborted_before_its_lease_ends(server: Served) -> None:
    program = Program(server)
    nodes = [opened(), extend("x"), *(gen(f"g{i}", n=1500, sampling_params={"ignore_eos": True}) for i in range(3))]
    body = json.dumps(program.body(*nodes)).encode()
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        raw.sendall(b"POST /program HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert settles(lambda: server.info()["num_open_requests"] == 3)
    assert settles(lambda: server.info()["num_open_requests"] == 0, 2.0)
    assert server.info()["programs"]["sequences"] == 1
    assert server.post("/program/close", {"programs": {program.name: ["0", "9"], "other": ["0"]}}) == {"closed": 1}
