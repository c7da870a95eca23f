"""What each kind of verifier takes for right, what it does not, and which known answers it refuses."""

import json
import time
from typing import Any

import pytest

from megatron_entropic.config.verifiers import ROW_OPTIONS, VERIFIERS, row_verifier_problem
from megatron_entropic.tasks.row_values import BadRowError
from megatron_entropic.tasks.verifiers import make_verifier, waits

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}


def score(name: str, options: dict[str, Any], text: str, response: str, row: dict[str, Any] | None = None) -> Any:
    verifier = make_verifier(name, options)
    return verifier.score(verifier.known_answer(text, row or {}), row or {}, response)


@pytest.mark.parametrize(
    ("name", "options", "text", "right", "wrong"),
    [
        ("math", {}, "work #### 1,234", [r"so \boxed{1234}", r"\boxed{1234.0}"], ["1234", r"\boxed{1235}", ""]),
        ("math", {}, "72", ["48 + 24 = 72\n#### 72", "so #### 72.0 \n", r"#### \$72", r"#### 5, no: \boxed{72}",
                                r"\boxed{} #### 72"],
                     ["#### 72\nor 5", "#### Answer\n72", "##### 72", "72 ####", "#### 72} 5",
                      r"\boxed{5}" "\n#### 72", "#### 5\n#### 6"]),
        ("exact", {}, " Paris ", ["Paris\n"], ["paris", "It is Paris", ""]),
        ("exact", {"ignore_case": True, "ignore_space": True}, "New York", ["new  york", "NEW\nYORK"], ["newyork"]),
        ("exact", {"extract": "tags"}, "4", ["<think>5</think><answer> 4 </answer>"], ["4", "<answer>4",
                                      "<answer>4</answer><answer>5</answer>"]),
        ("exact", {"extract": "line"}, "4", ["thus\n4\n\n"], ["4\nno 5"]),
        ("choice", {}, "(C) 12", ["C", "(c)", "The answer is (C).", "**Answer: C**", r"\boxed{C}",
                                  "<answer>C) 12</answer>", r"\boxed{\text{C}}",
                                  "<think>The answer is A</think> the answer is C"],
                              ["D", "", "Choose wisely", "A cat", "C++ or D? answer: D", "Carbon", "BC"]),
        ("choice", {"index_base": 0}, "2", ["C"], ["B", "2"]),
        ("choice", {"index_base": 1}, "2", ["B"], ["C"]),
        ("number", {}, "#### 1,234.50", ["so 1234.5", r"\boxed{1,234.50}", "The answer is: $1234.5.", "2469/2"],
                       ["1234.6", "none", "1234.50001", "12 34.5"]),
        ("number", {"absolute": 0.01}, "3.14", ["3.15", "3.13", "3.14159"], ["3.1501", "-3.14"]),
        ("number", {"relative": 0.1}, "-1e3", ["-1100", "−900", "-9.5e2"], ["-1101", "1000", "-1e999"]),
        ("regex", {"pattern": r"^\d{4}$"}, "", ["2024"], ["24", "20245"]),
        ("regex", {"ignore_case": True, "whole": True}, "colou?r", ["Color", "colour"], ["colors"]),
        ("json_schema", {"schema": SCHEMA}, "", ['{"a": 1}', 'Here:\n```json\n{"a": 2}\n```\nDone.', '<answer>{"a": 3}</answer>'],
                       ['{"a": "1"}', '{"a": 1, "b": 2}', '{"a": 1, "a": 1}', '{"a": NaN}', "[" * 100_000, "a: 1", ""]),
        ("json_schema", {}, json.dumps({"enum": [1]}), ["1"], ["2", "true", '"1"']),
        ("format", {}, "whatever", ["<think>x</think><answer>y</answer>", "<think>\nx\n</think>\n\n<answer>y</answer>\n"],
                       ["<think>x</think>", "x<think>x</think><answer>y</answer>", "<answer>y</answer><think>x</think>",
                        "<think> </think><answer>y</answer>",
                        "<think>x</think> and <answer>y</answer>", "<think><answer>y</answer></think>",
                        "<think>x</think><answer>y</answer>z", ""]),
        ("format", {"pattern": "yes.*"}, "", ["yes\nsir"], ["no", "oh yes"]),
    ],
)  # fmt: skip
def test_answers(name: str, options: dict[str, Any], text: str, right: list[str], wrong: list[str]) -> None:
    assert [response for response in right if score(name, options, text, response) != 1.0] == []
    assert [response for response in wrong if score(name, options, text, response) != 0.0] == []


@pytest.mark.parametrize(
    ("name", "options", "text", "message"),
    [
        ("math", {}, r"\boxed{\heartsuit", "answer"),
        ("exact", {}, "  ", "the answer is empty"),
        ("choice", {}, "3", "index_base: 0 or 1 says"),
        ("choice", {}, "yes, of course", "begins with no letter of a choice"),
        ("choice", {"index_base": 1}, "0", "is the number of no letter"),
        ("number", {}, "about 3", "is no number"),
        ("number", {}, "3 4", "is no number"),
        ("regex", {}, "(", "is no regular expression: missing"),
        ("regex", {}, " ", "a regular expression is needed"),
        ("json_schema", {}, "{", "is no JSON schema"),
        ("json_schema", {}, '{"type": "thing"}', "is no JSON schema: 'thing' is not valid"),
        ("reasoning_gym", {}, "4", "field metadata: missing, or no object"),
        ("code", {}, "", "there are no tests"),
    ],
)
def test_known_answers_that_no_response_could_equal(name: str, options: dict[str, Any], text: str, message: str) -> None:
    with pytest.raises(BadRowError, match=message):
        make_verifier(name, options).known_answer(text, {})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("exakt", {}, "verifier 'exakt' is none of math, choice, exact.*did you mean 'exact'"),
        ("exact", {"ignorecase": True}, r"verifier exact: no option 'ignorecase'; did you mean 'ignore_case'\? \(it has: extract"),
        ("math", {"x": 1}, r"verifier math: no option 'x' \(it has none\)"),
        ("exact", {"extract": "tag"}, "verifier exact: extract='tag': must be one of auto, tags.*did you mean 'tags'"),
        ("exact", {"ignore_case": 1}, "ignore_case=1: must be true or false"),
        ("number", {"absolute": -1}, "absolute=-1: must be a number from 0"),
        ("number", {"absolute": float("nan")}, "absolute=nan: must be a number"),
        ("choice", {"index_base": 2}, "index_base=2: must be 0 or 1"),
        ("regex", {"pattern": "("}, "pattern='\\(': is no regular expression"),
        ("json_schema", {"schema": {"type": "thing"}}, "is no JSON schema"),
        ("json_schema", {"schema": "x"}, "must be a JSON schema: an object"),
        ("format", {"tags": ["a b"]}, "must be a list of names"),
        ("format", {"tags": ["a"], "pattern": "x"}, "exclude each other"),
        ("code", {"processes": 0}, "processes=0: must be a whole number from 1"),
        ("reasoning_gym", {"dataset": "n_queens"}, "executes what the policy writes"),
        ("sum", {}, "must be a list of {name, weight, options}"),
        ("sum", {"parts": [{"name": "exact"}, {"name": "exact"}]}, "another part is named 'exact', too; give one of them a label"),
        ("sum", {"parts": [{"name": "exact", "weight": -1}]}, "one weight must be above 0"),
        ("sum", {"parts": [{"name": "exact", "label": "score"}]}, "cannot name a part"),
        ("judge", {"url": "ftp://x", "model": "m"}, "must be such as http://HOST:PORT/v1"),
        ("judge", {"url": "http://key@h/v1", "model": "m"}, "without a key in it"),
        ("judge", {"url": "http://h/v1"}, "verifier judge: model=None: text is needed"),
        ("judge", {"url": "http://h/v1", "model": "m", "key_env": "NO_SUCH_KEY"}, "there is no such environment variable"),
        ("judge", {"url": "http://h/v1", "model": "m", "template": "x"}, "must contain {response}"),
        ("judge", {"url": "http://h/v1", "model": "m", "pattern": "x"}, "must have one group"),
        ("nothing.py:reward", {}, "no file .*nothing.py"),
    ],
)
def test_bad_options_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_verifier(name, options)


@pytest.mark.parametrize("name", ["exact", "choice", "number", "format"])
def test_light_verifiers_take_no_time_for_any_text(name: str) -> None:
    verifier = make_verifier(name, {"extract": "auto"} if name != "format" else {})
    assert verifier.light  # type: ignore[attr-defined]
    started = time.process_time()
    for piece in (" ", "1", "1 ", "1,", "<answer>", r"\boxed{", "answer is ", "((((", "-", "1/", "</think>", "```\n", "e9"):
        verifier.score("1", {}, piece * (200_000 // len(piece)))
    assert time.process_time() - started < 20  # quadratic ones take hours


def test_a_response_that_gives_the_known_answer_is_right() -> None:
    for name, text in (("math", "3/4"), ("exact", "x"), ("choice", "B"), ("number", "7.5")):
        for way in ("tags", "box", "auto", "line", "whole") if name != "math" else ("",):
            verifier = make_verifier(name, {"extract": way} if way else {})
            answer = verifier.known_answer(text, {})
            assert verifier.score(answer, {}, verifier.response_of(answer)) == 1.0, (name, way)  # type: ignore[attr-defined]


def test_reasoning_gym_rows_are_judged_by_their_data_set() -> None:
    row = {"question": "Using 3, 5, 7 ...", "metadata": {"source_dataset": "countdown", "numbers": [3, 5, 7], "target": 22}}
    assert score("reasoning_gym", {}, "3*5+7", "<answer>7 + 3*5</answer>", row) == 1.0
    assert score("reasoning_gym", {}, "3*5+7", "<answer>22</answer>", row) == 0.0
    row = {"question": "2 + 2 = ?", "metadata": '{"source_dataset": "chain_sum"}'}
    assert score("reasoning_gym", {}, "4", "I say <answer>4</answer>", row) == 1.0
    assert score("reasoning_gym", {"dataset": "chain_sum"}, "4", "nan", {"metadata": {}}) == 0.0
    with pytest.raises(BadRowError, match="executes what the policy writes"):
        make_verifier("reasoning_gym", {}).known_answer("4", {"metadata": {"source_dataset": "n_queens"}})


def test_a_schema_fetches_nothing() -> None:
    verifier = make_verifier("json_schema", {"schema": {"$ref": "http://127.0.0.1:9/schema.json"}})
    with pytest.raises(Exception, match=r"127\.0\.0\.1:9"):
        verifier.score("", {}, "1")


def test_a_sum_has_parts_and_each_part_its_own_answer() -> None:
    parts = [
        {"name": "math", "weight": 0.8},
        {"name": "format", "weight": 0.2, "options": {"tags": ["think", "answer"]}},
        {"name": "exact", "weight": -0.5, "label": "echo", "options": {"extract": "line"}},
    ]
    verifier = make_verifier("sum", {"parts": parts})
    answer = verifier.known_answer("thus #### 7", {})
    assert json.loads(answer) == {"of each part": ["7", "thus #### 7", "thus #### 7"]}
    good = verifier.score(answer, {}, r"<think>a</think><answer>\boxed{7}</answer>")
    assert good == {"score": 1.0, "math": 1.0, "format": 1.0, "echo": 0.0}
    assert verifier.score(answer, {}, r"\boxed{7}") == {"score": 0.8, "math": 1.0, "format": 0.0, "echo": 0.0}
    assert verifier.score(answer, {}, "a\nthus #### 7") == {"score": pytest.approx(0.3), "math": 1.0, "format": 0.0, "echo": 1.0}
    inner = make_verifier("sum", {"parts": [{"name": "sum", "label": "both", "options": {"parts": parts[1:]}}, {"name": "exact"}]})
    given = inner.score(inner.known_answer("7", {}), {}, "7")
    assert given == {
        "both/format": 0.0,
        "both/echo": 1.0,
        "both": 0.0,
        "exact": 1.0,
        "score": 0.5,
    }


def test_a_sum_waits_only_where_nothing_in_it_computes() -> None:
    judge = {"name": "judge", "options": {"url": "http://127.0.0.1:9/v1", "model": "m"}}
    assert waits(make_verifier("sum", {"parts": [judge, {"name": "exact"}, {"name": "format"}]}))
    assert not waits(make_verifier("sum", {"parts": [judge, {"name": "math"}]}))
    assert not waits(make_verifier("sum", {"parts": [judge, {"name": "format", "options": {"pattern": "x"}}]}))


def test_functions_and_classes_of_ones_own(tmp_path: Any) -> None:
    file = tmp_path / "my rewards #1.py"
    file.write_text(
        "def near(response, answer, row, by=1):\n    length = len(response)\n"
        "    return {'score': float(abs(length - int(answer)) <= by), 'length': length}\n"
        "class Own:\n    def __init__(self, options):\n        self.options = options['x']\n"
        "    def known_answer(self, text, row):\n        return text\n"
        "    def score(self, answer, row, response):\n        return 0.25\n"
    )
    assert score(f"{file}:near", {"by": 2}, "3", "abcde") == {"score": 1.0, "length": 5}
    assert score(f"{file}:Own", {"x": 1}, "3", "abcde") == 0.25
    with pytest.raises(ValueError, match=r"Own: KeyError: 'x', .*my rewards #1\.py:6"):
        make_verifier(f"{file}:Own", {})
    with pytest.raises(ValueError, match=r"has no function nears; did you mean 'near'"):
        make_verifier(f"{file}:nears", {})


def test_a_row_may_not_name_code_servers_keys_or_limits() -> None:
    assert set(ROW_OPTIONS) < set(VERIFIERS)
    assert not row_verifier_problem("choice", {"index_base": 0})
    for name, options in (
        ("judge", {}),
        ("sum", {}),
        ("evil.py:run", {}),
        ("code", {"allow_unsandboxed": True}),
        ("code", {"memory_mb": 10**6}),
        (["exact"], {}),
    ):
        assert row_verifier_problem(name, options).startswith("a row cannot"), name
