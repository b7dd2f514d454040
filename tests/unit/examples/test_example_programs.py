"""What the twelve examples ask and what they make of the answers, without a model."""

from __future__ import annotations

from typing import Any

import pytest

import sglite as sgl
from examples import (
    few_shot_hellaswag,
    few_shot_mmlu,
    generative_agents,
    json_decoding,
    llm_judge,
    map_reduce_summarise,
    multi_turn_chat,
    rag_pipeline,
    react_agent,
    skeleton_of_thought,
    tool_agent,
    tree_of_thought,
)
from sglite.lang.testing import Call, Invalid, Mock, MockRequest

ASKED = "\nASSISTANT: "


def test_mmlu_asks_every_question_behind_its_subjects_examples() -> None:
    rows = few_shot_mmlu.rows(subjects=2, questions=2)
    with Mock({"letter": [" B", " D", " A", " C"]}) as mock:
        states = few_shot_mmlu.answer.run_batch(rows, backend=mock, num_threads=1)
    assert [state["letter"] for state in states] == [" B", " D", " A", " C"]
    assert mock.prompts == [row["examples"] + row["question"] for row in rows]
    assert rows[0]["examples"] == rows[1]["examples"] != rows[2]["examples"]
    assert all(request.sampling.max_new_tokens == 1 for request in mock.requests)


def test_hellaswag_chooses_one_of_its_endings() -> None:
    row = few_shot_hellaswag.rows(n=1)[0]
    with Mock({"ending": row["endings"][2]}) as mock:
        state = few_shot_hellaswag.complete.run(**row, backend=mock)
        assert state["ending"] == row["endings"][2]
    assert state.text() == row["examples"] + row["context"] + row["endings"][2]
    assert mock.requests[0].choices == tuple(row["endings"])


def test_the_react_agent_reads_what_its_tools_say_and_stops_when_it_is_finished() -> None:
    answers = {
        "thought": [" Where is Lisbon?", " On the Tagus."],
        "tool": [" Search", " Finish"],
        "topic": ["Lisbon"],
        "answer": " The Tagus",
    }
    fact = react_agent.search("Lisbon")
    with Mock(answers) as mock:
        state = react_agent.react.run("Q?", 5, backend=mock)
        assert state["answer"] == " The Tagus"
    assert [call[:2] for call in state.ret_value] == [(" Search", fact)]
    assert state.text().removeprefix(react_agent.SOLVED) == (
        f"Question: Q?\nThought 1: Where is Lisbon?\nAction 1: Search[Lisbon]\nObservation 1: {fact}"
        "\nThought 2: On the Tagus.\nAction 2: Finish\nAnswer: The Tagus"
    )


def test_the_react_agent_takes_no_more_steps_than_it_may() -> None:
    answers = {"thought": " Hm.", "tool": " Chance", "topic": "Tagus", "answer": " ?"}
    with Mock(answers) as mock:
        assert len(react_agent.react.run("Q?", 2, backend=mock).ret_value) == 2


def test_generative_agents_give_typed_answers() -> None:
    def answer(request: MockRequest) -> Any:
        return 7 if "Rating:" in request.prompt else request.choices[1] if request.choices else " Well."

    values = [state.ret_value for state in generative_agents.run(Mock(answer), people=2, events=1)]
    assert values == [7, " Well.", " market"] * 2


def test_tree_of_thought_goes_on_with_the_best_ideas() -> None:
    def answer(request: MockRequest) -> Any:
        if request.name == "step":
            return f" try {request.prompt[-2]}{request.prompt.count('Idea')}"
        return 9 if "Idea 2" in request.prompt.rpartition("\n")[2] else 1

    mock = Mock(answer)
    state = tree_of_thought.run(mock, depth=2, width=3, keep=1)[0]
    assert state.ret_value == (f"{tree_of_thought.PUZZLE}\nIdea 2 for step 1: try 11\nIdea 2 for step 2: try 22")
    assert len(mock.requests) == 2 * (3 + 3)
    judged = [request.prompt for request in mock.requests if request.name is None]
    assert all(prompt.endswith(tree_of_thought.JUDGE) and prompt.count("?") == 1 for prompt in judged)


def test_the_skeleton_decides_how_many_sentences_there_are() -> None:
    def answer(request: MockRequest) -> Any:
        if request.prompt.endswith(f"{skeleton_of_thought.LIST}{ASKED}"):
            return "Knots Winds Boats"
        return f"({request.prompt.rpartition('about ')[2][:5]})" if "Write" in request.prompt else "All of it."

    mock = Mock(answer)
    state = skeleton_of_thought.run(mock, least=1, most=5)[0]
    assert state.ret_value == "All of it." and state["points"] == ["Knots", "Winds", "Boats"]
    assert mock.prompts[-1].endswith(f"USER: Put it together:\n(Knots)\n(Winds)\n(Boats){ASKED}")
    assert "List" not in mock.prompts[-1]  # the outline stays on its branch


def test_the_judge_grades_in_all_dimensions_and_sees_the_grades() -> None:
    with Mock({"clarity": 4, "style": 2, "verdict": llm_judge.Verdict.REVISE}) as mock:
        state = llm_judge.judge.run("Once.", ["clarity", "style"], backend=mock)
        assert state.ret_value is llm_judge.Verdict.REVISE
    base = f"SYSTEM: {llm_judge.RULES}\nUSER: The essay:\nOnce.\n\n"
    assert sorted(mock.prompts) == sorted(
        [
            f"{base}USER: clarity, from 1 to 5?{ASKED}",
            f"{base}USER: style, from 1 to 5?{ASKED}",
            f"{base}USER: The grades: 4, 2. What becomes of it?{ASKED}",
        ]
    )


def test_a_grade_out_of_range_is_no_grade() -> None:
    mock = Mock({"style": Invalid("6"), "verdict": llm_judge.Verdict.REVISE})
    with pytest.raises(sgl.VariableError, match="6"):
        llm_judge.judge.run_value("Once.", ["style"], backend=mock)


def test_json_comes_as_an_object_or_in_a_template() -> None:
    luna = json_decoding.Wizard(house="Ravenclaw", year=3, wand="yew")
    with Mock({"wizard": luna, "house": "Slytherin", "year": 7, "wand": "ash"}) as mock:
        schema, template = json_decoding.run(mock, names=1)
        assert schema.ret_value == luna
        assert template.text().endswith('{"house": "Slytherin", "year": 7, "wand": "ash"}')
    assert json_decoding.Wizard.model_validate_json(template.text().partition("\n")[2]).year == template["year"] == 7


def test_a_chat_goes_on_where_it_ended() -> None:
    with Mock({"answer 0": "Hello.", "answer 1": "Paris."}) as mock:
        state = multi_turn_chat.chat.run(["Hi", "Capital?"], 8, backend=mock)
        assert state["answer 1"] == "Paris."
    assert mock.prompts[1] == f"{mock.prompts[0]}Hello.\nUSER: Capital?{ASKED}"
    assert [message["role"] for message in state.messages()] == ["system", "user", "assistant", "user", "assistant"]


def test_rag_puts_the_documents_that_questions_share_first() -> None:
    program = rag_pipeline.answer.bind()
    answers = {None: "amber stone", "answer": "Resin.", "cited": "Document A"}
    prompts = []
    for question in ("What is amber?", "Which rock is amber?"):
        with Mock(answers) as mock:
            assert program.run_value(question, 2, 8, backend=mock) == "Document A"
        prompts.append(mock.prompts)
    first, second = (asked[1].rpartition("USER: ")[2] for asked in prompts)
    assert first.startswith("Document A: Amber") and second.startswith("Document A: Amber")
    assert first.endswith(f"What is amber?{ASKED}") and "search query" not in prompts[0][1]


def test_map_reduce_summarises_the_summaries() -> None:
    mock = Mock(lambda request: f"<{request.prompt.rpartition('USER: ')[2][:2]}>")
    state = map_reduce_summarise.run(mock, parts=3, words=2)[0]
    assert state.ret_value == "<Al>"
    assert mock.prompts[-1].endswith(f"USER: All summaries:\n<A0>\n<B1>\n<C2>{ASKED}")
    assert len(mock.prompts) == 4


def test_the_tool_agent_calls_several_tools_at_once_and_answers() -> None:
    calls = [Call("get_weather", city="Oslo"), Call("get_time", city="Oslo")]
    with Mock([calls, "It is 11 degrees at 10:30."]) as mock:
        state = tool_agent.ask.run("Now?", 48, backend=mock)
        assert state.ret_value == "It is 11 degrees at 10:30."
    told = [message["content"] for message in mock.requests[1].messages if message["role"] == "tool"]
    assert told == ['{"city":"Oslo","temperature":11,"condition":"cloudy"}', "10:30"]
    assert [request.tool_choice for request in mock.requests] == ["required", "auto"]


def test_the_tool_agent_is_told_of_a_city_that_there_is_not() -> None:
    calls = [Invalid(Call("get_weather", city="Atlantis")), Call("get_time", city="Porto"), "It is 09:30."]
    with Mock(calls) as mock:
        assert tool_agent.ask.run_value("When?", 48, backend=mock) == "It is 09:30."
    assert "city" in mock.requests[1].messages[-1]["content"]
