"""Judges and reward models behind HTTP: real servers on loopback that are right, slow, busy, damaged, hostile or gone."""

import json
import logging
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.tasks.task import Problem
from megatron_entropic.tasks.verification import WaitingPool
from megatron_entropic.tasks.verifiers import make_verifier
from megatron_entropic.tasks.verifiers.remote import RemoteError
from megatron_entropic.tasks.verifiers.verdict_cache import FOLDER_VARIABLE
from tests.tasks.verifiers.servers import Asked, said, serving

ROW = {"prompt": "2 + 2?"}


@pytest.fixture(autouse=True)
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


def judge_at(server: Asked, **options: Any) -> Any:
    return make_verifier("judge", {"url": f"{server.url}/v1", "model": "m", **options})


def test_a_judge_sees_prompt_answer_and_response_and_its_last_score_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with serving(lambda body, number: said("At first Score: 2, but **Score: 7.5**")) as server:
        extra = {"max_tokens": None, "chat_template_kwargs": {"enable_thinking": False}}
        judge = judge_at(server, key_env="MY_KEY", system="Be strict.", extra=extra)
        assert judge.score("4", ROW, "<think>Score: 10</think> it is {answer}, {prompt}") == 0.75
    assert server.paths == ["/v1/chat/completions"]
    assert server.keys == ["Bearer sk-secret"]
    (body,) = server.bodies
    assert (body["model"], body["temperature"], body["messages"][0]) == ("m", 0.0, {"role": "system", "content": "Be strict."})
    assert "max_tokens" not in body
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    asked = body["messages"][1]["content"]
    assert "Question:\n2 + 2?\n" in asked
    assert "Reference answer:\n4\n" in asked
    assert "it is {answer}, {prompt}\n" in asked  # what a response writes is not filled in
    assert "<think>" not in asked


def test_the_log_has_no_line_of_every_answer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)  # of the root, as a run and `evaluate` have it
    with serving(lambda body, number: said("Score: 5")) as server:
        assert judge_at(server).score("4", ROW, "x") == 0.5
    assert caplog.messages == []


def test_verdicts_are_kept_on_disk_by_content_and_survive_damage(tmp_path: Path) -> None:
    with serving(lambda body, number: said(f"Score: {number}")) as server:
        first = judge_at(server, cache=str(tmp_path / "kept #1"))
        assert [first.score("4", ROW, text) for text in ("a", "b", "a")] == [0.0, 0.1, 0.0]
        file = tmp_path / "kept #1" / "judge.jsonl"
        assert "sk-" not in file.read_text()
        file.write_bytes(b'[]\nnonsense\n{"key": 3, "score": 1}\n' + file.read_bytes() + b'{"key": "to')  # torn by a kill
        again = judge_at(server, cache=str(tmp_path / "kept #1"))
        assert [again.score("4", ROW, text) for text in ("b", "a", "c")] == [0.1, 0.0, 0.2]
        assert judge_at(server, cache=str(tmp_path / "kept #1")).score("4", ROW, "c") == 0.2
        assert judge_at(server, cache=str(tmp_path / "kept #1"), scale=20.0).score("4", ROW, "c") == 0.15  # asked otherwise
        assert judge_at(server, cache="none").score("4", ROW, "c") == 0.4
    assert len(server.bodies) == 5


def test_the_folder_is_the_runs_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "verdicts"))
    with serving(lambda body, number: said("Score: 1")) as server:
        judge_at(server).score("4", ROW, "a")
    assert [path.name for path in (tmp_path / "verdicts").iterdir()] == ["judge.jsonl"]


def test_a_busy_server_is_asked_again() -> None:
    replies = {0: (503, {"error": "busy"}), 1: (429, {"error": "slow down"})}
    with serving(lambda body, number: replies.get(number, said("Score: 10"))) as server:
        assert judge_at(server).score("4", ROW, "a") == 1.0
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {"error": "wrong key"}), "chat/completions replied 401: .*wrong key"),
        ((503, {"error": "busy"}), r"replied 503: .*busy.* \(asked 2 times\)"),
        ((302, b""), "replied 302"),
        ((200, b"<html>"), "replied with something else than JSON: b'<html>'"),
        ((200, b"[" * 100_000), "something else than JSON"),
        ((200, {"choices": []}), "replied with no choices"),
        ((200, b"x" * 2**23), "replied with more than 4194304 bytes"),
        (said("It is right."), "the judge's reply has no score: 'It is right.'"),
        (said("Score: 11"), "the judge's score 11 is not from 0 to 10"),
        (said("Score: -1"), "the judge's score -1 is not from 0 to 10"),
        (said("Score: " + "9" * 400), "is not from 0 to 10"),
    ],
)
def test_what_is_no_verdict_is_a_failure_that_names_the_server(reply: Any, message: str) -> None:
    with serving(lambda body, number: reply) as server, pytest.raises(RemoteError, match=message) as failure:
        judge_at(server, retries=1, timeout_s=5).score("4", ROW, "a")
    assert server.url in str(failure.value)


def test_one_that_hangs_or_is_gone_costs_its_time_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        silent = Asked(url=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        with pytest.raises(RemoteError, match=r"did not answer in 0\.\d+ s"):
            judge_at(silent, timeout_s=0.3).score("4", ROW, "a")
    gone = judge_at(silent, retries=2)
    with pytest.raises(RemoteError, match=r"cannot be reached: ConnectError: .* \(asked 3 times\)"):
        gone.score("4", ROW, "a")
    started = time.monotonic()
    for text in "bcdefghij":  # no more tries, for a while
        with pytest.raises(RemoteError, match=r"cannot be reached: ConnectError: [^(]*$"):
            gone.score("4", ROW, text)
    assert time.monotonic() - started < 10


def test_many_answers_wait_at_a_time_and_failures_are_verdicts() -> None:
    together = threading.Barrier(33)  # the 32 requests, and the test: all must be under way at one time

    def reply(body: Any, number: int) -> Any:
        together.wait(60)
        return said("Score: 5") if "good" in body["messages"][0]["content"] else said("what?")

    class Task:
        def __init__(self, judge: Any) -> None:
            self.judge = judge

        def score(self, problem: Problem, response: str) -> Any:
            return self.judge.score("4", {"prompt": problem.prompt}, response)

    with serving(reply) as server:
        pool = WaitingPool(Task(judge_at(server)), 64)
        futures = [pool.submit(Problem("p", {}), f"{'good' if n % 2 else 'bad'} {n}") for n in range(32)]
        together.wait(60)
        verdicts = [future.result() for future in futures]
        pool.close()
        assert pool.submit(Problem("p", {}), "late").cancelled()
    assert server.most == 32
    assert [verdict.score for verdict in verdicts] == [0.0, 0.5] * 16
    assert {(verdict.outcome, verdict.reason[:11]) for verdict in verdicts} == {("scored", ""), ("failed", "RemoteError")}


def test_a_reward_model_is_asked_in_batches() -> None:
    def reply(body: Any, number: int) -> Any:
        scores = [float(text.rpartition(" ")[2]) / 100 for text in body["input"]]
        data = [{"index": n, "label": "x", "probs": [1 - score, score]} for n, score in enumerate(scores)]
        return 200, {"data": data[::-1]}  # in any order

    with serving(reply, takes_s=0.05) as server:
        model = make_verifier("reward_model", {"url": server.url, "model": "rm", "batch": 8})
        with ThreadPoolExecutor(40) as threads:
            scores = list(threads.map(lambda n: model.score("", ROW, f"is {n}"), range(40)))
    assert scores == [n / 100 for n in range(40)]
    assert set(server.paths) == {"/classify"}
    assert len(server.bodies) < 40
    assert max(len(body["input"]) for body in server.bodies) <= 8
    assert server.bodies[0]["input"][0].startswith("2 + 2?\nis ")


@pytest.mark.parametrize(("data", "score"), [(2.0, 1 / (1 + math.exp(-2))), ([[0.1], [-2.0]], 1 / (1 + math.exp(2))), ([-1e4], 0.0)])
def test_what_is_pooled_is_squashed(data: Any, score: float) -> None:
    with serving(lambda body, number: (200, {"data": [{"index": 0, "data": data}]})) as server:
        options = {"url": server.url, "model": "rm", "api": "pooling", "squash": "sigmoid"}
        assert make_verifier("reward_model", options).score("", ROW, "x") == pytest.approx(score)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": []}, "replied with 0 scores for 1 texts"),
        ({"data": [{"probs": []}]}, "no list of scores under data"),
        ({"data": [{"probs": ["x"]}]}, "no list of scores under data"),
        ({"error": "x"}, "no list of scores under data"),
        (b'{"data": [{"probs": [NaN]}]}', "no list of scores under data"),
        ({"data": [{"probs": [7.5]}]}, "gave 7.5, which is not from 0 to 1; say squash: sigmoid"),
    ],
)
def test_scores_that_are_none_are_failures(content: Any, message: str) -> None:
    with serving(lambda body, number: (200, content)) as server, pytest.raises(RemoteError, match=message):
        make_verifier("reward_model", {"url": server.url, "model": "rm"}).score("", ROW, "x")


def test_a_row_without_a_prompt_and_one_with_a_chat() -> None:
    with serving(lambda body, number: said("Score: 10")) as server:
        with pytest.raises(ValueError, match="the row has no prompt in prompt or question or problem; name its field by prompt_field"):
            judge_at(server).score("4", {"text": "x"}, "a")
        chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
        assert judge_at(server, prompt_field="asked").score("4", {"asked": chat}, "a") == 1.0
    assert "Question:\nS\n\nU\n" in json.dumps(server.bodies[0]["messages"][0]["content"]).encode().decode("unicode_escape")
