"""RuntimeEndpoint: what it sends and how it reads what servers answer."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import sglite as sgl
from sglite.lang.backends.endpoint_text import _choice_rows
from sglite.lang.formats import named_format


def reply(text: str = "ok", **meta: Any) -> dict[str, Any]:
    return {"text": text, "meta_info": {"prompt_tokens": 3, **meta}}


@sgl.function
def once(s: Any, **options: Any) -> None:
    s += "p" + sgl.gen("v", **options)


def test_a_gen_is_one_request_with_the_text_so_far(native: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += "A" + sgl.gen("a", max_tokens=3) + "B" + sgl.gen("b", temperature=0.0)

    state = f.run(backend=sgl.RuntimeEndpoint(native.url))
    assert state.text() == "AokBok"
    bodies = native.generate_bodies()
    assert [b["text"] for b in bodies] == ["A", "AokB"]
    assert bodies[0]["sampling_params"]["max_new_tokens"] == 3 and bodies[1]["sampling_params"]["temperature"] == 0.0


def test_streamed_events_are_cumulative_text(native: Any) -> None:
    native.answers = lambda body: [reply("a"), reply("ab"), reply("abc", completion_tokens=3)]
    state = once.run(backend=sgl.RuntimeEndpoint(native.url), stream=True)
    assert list(state.text_iter("v")) == ["a", "b", "c"] and state["v"] == "abc"
    assert state.get_meta_info("v")["completion_tokens"] == 3 and native.generate_bodies()[0]["stream"] is True


def test_unusual_line_separators_in_streamed_text_are_text(native: Any) -> None:
    text = "a\u2028b\x85c\x0cd é\r\n"
    native.answers = lambda body: [reply(text[:4]), reply(text)]
    assert once.run(backend=sgl.RuntimeEndpoint(native.url), stream=True)["v"] == text


@pytest.mark.parametrize("stream", [False, True])
def test_n_outputs_by_list_or_by_index(native: Any, stream: bool) -> None:
    events = [{**reply("x"), "index": 1}, {**reply("y"), "index": 0}, {**reply("xx"), "index": 1}]
    native.answers = lambda body: events if body.get("stream") else [reply("y"), reply("xx")]
    state = once.run(n=2, backend=sgl.RuntimeEndpoint(native.url), stream=stream)
    assert state["v"] == ["y", "xx"] and state.text() == "py"


def test_refusals_carry_the_servers_words(native: Any) -> None:
    native.answers = lambda body: 400
    for stream in (False, True):
        error = once.run(backend=sgl.RuntimeEndpoint(native.url), stream=stream).error()
        assert isinstance(error.__cause__, sgl.BackendError)
        assert "HTTP 400: top_p must be in (0, 1]" in str(error)


def test_a_stream_that_turns_into_an_error_fails(native: Any) -> None:
    native.answers = lambda body: [reply("a"), {"error": {"message": "out of memory"}}]
    state = once.run(backend=sgl.RuntimeEndpoint(native.url), stream=True)
    assert "".join(state.text_iter("v")) == "a" and "out of memory" in str(state.error())


def test_a_request_that_the_server_gave_up_is_no_output(native: Any) -> None:
    native.answers = lambda body: reply("half", finish_reason={"type": "abort", "message": "shutting down"})
    assert "abort: shutting down" in str(once.run(backend=sgl.RuntimeEndpoint(native.url)).error())


def test_a_server_that_is_not_there_fails_at_once_and_by_name() -> None:
    with pytest.raises(sgl.BackendError, match=r"http://127\.0\.0\.1:9: ConnectError"):
        sgl.RuntimeEndpoint("http://127.0.0.1:9")


def test_the_api_key_goes_with_every_request(native: Any) -> None:
    backend = sgl.RuntimeEndpoint(native.url + "/", api_key="secret")
    once.run(backend=backend).sync()
    assert backend.flush_cache() is True and backend.get_server_info() == {"version": "old"}
    assert {auth for _, _, auth in native.seen} == {"Bearer secret"}
    assert backend.get_model_name() == "m"


def test_connections_are_kept_and_bounded(native: Any) -> None:
    backend = sgl.RuntimeEndpoint(native.url, max_connections=3)
    in_flight, peak, lock = [0], [0], threading.Lock()

    def answer(body: Any) -> Any:
        with lock:
            in_flight[0] += 1
            peak[0] = max(peak[0], in_flight[0])
        threading.Event().wait(0.005)
        with lock:
            in_flight[0] -= 1
        return reply()

    native.answers = answer
    once.run_batch([{}] * 20, backend=backend)
    assert peak[0] <= 3
    connections = backend._http._connections
    assert connections is not None and len(connections.idle) <= 3


def test_a_fork_computes_a_long_prefix_once_and_a_short_one_never(native: Any) -> None:
    @sgl.function
    def f(s: Any, prefix: str) -> None:
        s += prefix
        group = s.fork(3)
        group += "q" + sgl.gen("v")
        group[0].fork(2)
        s.fork(2)
        s += prefix
        s.fork(1)

    backend = sgl.RuntimeEndpoint(native.url)
    f.run("short", backend=backend).run.finished.result(5)
    assert [b["text"] for b in native.generate_bodies()] == ["shortq"] * 3
    native.seen.clear()
    f.run("x" * 100, backend=backend).run.finished.result(5)
    assert [b["text"] for b in native.generate_bodies()] == ["x" * 100] + ["x" * 100 + "q"] * 3
    assert native.generate_bodies()[0]["sampling_params"]["max_new_tokens"] == 0


def test_select_scores_all_choices_in_one_request(native: Any) -> None:
    def answer(body: Any) -> Any:
        if body["text"] == "Colour:":
            return reply("", prompt_tokens=5)
        return [
            reply("", input_token_logprobs=[[None, 1, "our"], [-0.5, 2, ":"], [lp, 3, choice]])
            for lp, choice in ((-3.0, " red"), (-1.0, " green"))
        ]

    native.answers = answer

    @sgl.function
    def f(s: Any) -> None:
        s += "Colour:" + sgl.select("c", [" red", " green"]) + "."

    state = f.run(backend=sgl.RuntimeEndpoint(native.url))
    assert state.text() == "Colour: green."
    assert state.get_meta_info("c")["normalized_prompt_logprobs"] == [-3.0, -1.0]
    prefill, score = native.generate_bodies()
    assert prefill["sampling_params"]["max_new_tokens"] == score["sampling_params"]["max_new_tokens"] == 0
    assert score["text"] == ["Colour: red", "Colour: green"] and score["logprob_start_len"] == 3


def test_unconditional_scores_are_of_the_same_tokens_alone(native: Any) -> None:
    def answer(body: Any) -> Any:
        if "input_ids" in body:
            return [reply("", input_token_logprobs=[[None, ids[0], None]]) for ids in body["input_ids"]]
        if isinstance(body["text"], str):
            return reply("", prompt_tokens=1)
        return [reply("", input_token_logprobs=[[None, 9, "p"], [-1.0, 7, "a"]]) for _ in body["text"]]

    native.answers = answer

    @sgl.function
    def f(s: Any) -> None:
        s += "p" + sgl.select("c", ["a"], choices_method=sgl.unconditional_likelihood_normalized)

    state = f.run(backend=sgl.RuntimeEndpoint(native.url))
    assert state.get_meta_info("c")["normalized_unconditional_prompt_logprobs"] == [-1.0]
    assert native.generate_bodies()[-1]["input_ids"] == [[7]]
    assert native.generate_bodies()[-1]["logprob_start_len"] == 0


@pytest.mark.parametrize(
    "prompt, choice, rows, expected",
    [
        ("ab", "c", [(None, "a"), (-1.0, "b"), (-2.0, "c")], ["c"]),
        ("ab", "cd", [(None, "a"), (-1.0, "bc"), (-2.0, "d")], ["bc", "d"]),  # the choice changed the prompt's end
        ("aa", "a", [(None, "a"), (-1.0, "a"), (-2.0, "a")], ["a"]),
        ("é", "b", [(None, "\ufffd"), (-1.0, "\ufffd"), (-2.0, "b")], ["b"]),  # texts do not spell: count tokens
        ("", "ab", [(None, "a"), (-1.0, "b")], ["b"]),
    ],
)
def test_the_tokens_of_a_choice(prompt: str, choice: str, rows: Any, expected: list[str]) -> None:
    given = [[lp, i, text] for i, (lp, text) in enumerate(rows)]
    boundary = min(2, len(prompt.encode()))
    assert [row[2] for row in _choice_rows(prompt, choice, given, boundary)] == expected


def test_a_choice_without_any_probability_is_refused() -> None:
    with pytest.raises(sgl.BackendError, match="put text before"):
        _choice_rows("", "a", [[None, 1, "a"]], 0)


def test_images_go_with_the_request_unless_the_server_cannot_see(native: Any) -> None:
    @sgl.function
    def f(s: Any, *images: bytes) -> None:
        for content in images:
            s += sgl.image(content)
        s += "?" + sgl.gen("v")

    assert f.run(b"1", backend=sgl.RuntimeEndpoint(native.url)).text() == "<image>?ok"
    f.run(b"1", b"2", backend=sgl.RuntimeEndpoint(native.url)).sync()
    assert [b["image_data"] for b in native.generate_bodies()] == ["MQ==", ["MQ==", "Mg=="]]
    native.model_info["has_image_understanding"] = False
    error = f.run(b"1", backend=sgl.RuntimeEndpoint(native.url)).error()
    assert "takes text only" in str(error)


def test_turns_are_spelled_as_named_or_as_the_server_says_or_with_a_warning(native: Any) -> None:
    @sgl.function
    def f(s: Any) -> None:
        s += sgl.user("hi")

    named = sgl.RuntimeEndpoint(native.url, chat_template_name="chatml")
    assert f.run(backend=named).text() == "<|im_start|>user\nhi<|im_end|>\n"
    with pytest.warns(UserWarning, match="does not tell its model's chat format"):
        assert f.run(backend=sgl.RuntimeEndpoint(native.url)).text() == "USER: hi\n"
    native.model_info["chat_format"] = {"turns": {"user": ["<u>", "</u>"]}, "stop": ["</a>"]}
    told = sgl.RuntimeEndpoint(native.url)
    assert f.run(backend=told).text() == "<u>hi</u>" and told.chat_format().stop == ("</a>",)
    with pytest.raises(ValueError, match="there are plain, chatml"):
        sgl.RuntimeEndpoint(native.url, chat_template_name="unheard of")


def test_a_format_names_the_roles_it_has() -> None:
    with pytest.raises(ValueError, match="has no role 'system'; it has user, assistant"):
        named_format("gemma-it").turn("system", first=True)
