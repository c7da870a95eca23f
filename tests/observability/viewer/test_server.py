"""The viewer's server: only with the key, only on this machine; samples with what was recorded of their tokens."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_entropic.observability.viewer.pieces import pieces_of, tokenizer_of
from megatron_entropic.observability.viewer.server import Viewer
from megatron_entropic.rollout.recording import file_name
from megatron_entropic.rollout.token_recording import token_file_name
from megatron_entropic.system.shipped_files import models_folder
from tests.command_line import megatron_entropic
from tests.observability.synthetic_runs import MakeRun


@pytest.fixture
def viewer(make_run: MakeRun, tmp_path: Path) -> Iterator[Viewer]:
    run_dir = make_run(steps=2, text="<script>alert(1)</script>")
    with Viewer(run_dir, index_file=tmp_path / "index.sqlite") as viewer:
        viewer.index.refresh()
        yield viewer


def got(url: str, **headers: str) -> tuple[int, Any, bytes]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def test_the_key_and_the_host_are_asked_for(viewer: Viewer) -> None:
    base = viewer.url.removesuffix(f"{viewer.key}/")
    assert base.startswith("http://127.0.0.1:")
    status, headers, page = got(viewer.url)
    assert status == 200
    assert b"<script src" in page
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    for path in ("", "x/", f"{viewer.key[:-1]}/", f"{viewer.key}", f"{viewer.key}/../server.py", f"{viewer.key}/server.py", "é/"):
        assert got(base + urllib.parse.quote(path))[0] == 404, path
    assert got(viewer.url, Host="evil.example")[0] == 404
    assert got(viewer.url, Host="localhost:8000")[0] == 200  # through a tunnel


def test_what_is_asked_wrongly_is_said(viewer: Viewer) -> None:
    for query, said in (
        ("search?page=x", "invalid literal"),
        ("search?step_from=x", "step_from=x"),
        ("prompt?step=0", "missing: 'prompt_index'"),
        ("prompt?step=0&prompt_index=99", "step 1 has no prompt 99"),
        ("prompt?step=9&prompt_index=0", "step 9 is not recorded"),
    ):
        status, _, content = got(f"{viewer.url}api/{query}")
        assert status == 200
        assert said in json.loads(content)["error"]


def test_samples_say_what_was_recorded(viewer: Viewer) -> None:
    answer = json.loads(got(f"{viewer.url}api/prompt?step=1&prompt_index=3&reward_from=1")[2])
    assert answer["prompt"] == "Write 3 as a sum:"
    assert answer["fitting"] == [1, 3]
    assert [sample["reward"] for sample in answer["samples"]] == [0.0, 1.0, 0.0, 1.0]
    assert answer["samples"][0]["text"] == "<script>alert(1)</script>"  # JSON, which the page makes a text node of
    assert answer["samples"][0]["values"] == {"sampler_log_prob": [-0.1, -0.33333, -1e-07, -2.0]}
    folder = viewer.run_dir / "rollouts"
    (folder / token_file_name(1)).write_bytes((folder / file_name(1)).read_bytes())  # a record of something else
    again = json.loads(got(f"{viewer.url}api/prompt?step=1&prompt_index=3")[2])
    assert any("not a record of these rollouts' tokens" in remark for remark in again["remarks"])
    assert len(again["samples"]) == 4


def test_pieces_make_up_the_text_also_of_torn_characters() -> None:
    tokenizer, remark = tokenizer_of(Path("nowhere"), {"model": {"hf_path": str(models_folder() / "tiny-decompose")}})
    assert tokenizer is not None
    assert remark is None
    ids = tokenizer.encode("12+345").ids
    assert "".join(pieces_of(tokenizer, ids)) == "12+345"
    assert pieces_of(tokenizer, [*ids, 10**6])[-1] == "⟨1000000⟩"
    assert pieces_of(None, [7]) == ["⟨7⟩"]
    assert "there is no nowhere/hf/tokenizer.json" in (tokenizer_of(Path("nowhere"), {})[1] or "")


def test_bytes_of_a_character_come_with_its_last_token() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    ids = tokenizer.encode("a€ b😀").ids
    assert pieces_of(tokenizer, ids) == ["a", "", "", "€", " ", "b", "", "", "", "😀"]
    garbage = np.random.default_rng(0).integers(0, 256, 300).tolist()
    assert len(pieces_of(tokenizer, garbage)) == 300
    assert "".join(pieces_of(tokenizer, garbage)).count("�") > 20


def test_what_is_no_run_or_port_is_refused(tmp_path: Path) -> None:
    outcome = megatron_entropic("view", str(tmp_path), "--no-browser")
    assert (outcome.code, outcome.output) == (
        2,
        f"megatron-entropic: error: {tmp_path}/config.yaml: no such file; {tmp_path} is not the folder of a run\n",
    )
    assert "is no port" in megatron_entropic("view", str(tmp_path), "--port", "99999").output
