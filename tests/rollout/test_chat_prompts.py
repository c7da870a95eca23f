"""Chats, system prompts and arguments of the template: to the tokens, to the record and back."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_entropic.config import BatchConfig, Config, DataConfig, DataSource, ModelConfig, RolloutConfig, TaskConfig
from megatron_entropic.rollout.prompt_encoder import PromptEncoder
from megatron_entropic.rollout.prompts import PromptStream, make_stream
from megatron_entropic.rollout.recording import RolloutWriter, read_rollouts
from megatron_entropic.tasks import make_task
from megatron_entropic.tasks.task import Problem
from tests.rollout.tokens import one_token_rollout
from tests.tiny_models import TINY_DECOMPOSE

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}=={% endif %}"
)
CHAT = ({"role": "system", "content": "9"}, {"role": "user", "content": "1+2="})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "chatty"
    shutil.copytree(TINY_DECOMPOSE, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))
    return folder


def config(model: Path, path: Path, *, chat: bool = True, overlong: str = "refuse", **source: object) -> Config:
    return Config(
        model=ModelConfig(hf_path=model),
        batch=BatchConfig(max_tokens_per_micro_batch=100),
        rollout=RolloutConfig(max_new_tokens=20),
        task=TaskConfig(name="data", chat_template=chat, overlong_prompts=overlong),  # type: ignore[arg-type]
        data=DataConfig(train=(DataSource(path=str(path), verifier="exact", **source),)),  # type: ignore[arg-type]
    )


def stream(cfg: Config) -> PromptStream:
    return make_stream(cfg, make_task(cfg.task, 0, cfg.data), prompts_per_step=3)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": "1+" * n + "1=", "answer": n + 1}) + "\n" for n in (1, 20, 60)))
    return path


def test_a_chat_and_its_arguments_reach_the_template(model: Path) -> None:
    encoder = PromptEncoder(model, chat_template=True)
    assert encoder.encode("1+2=")[0] == "<user>1+2=<assistant>"
    text, ids = encoder.encode(Problem("1+2=", messages=CHAT, template_options={"enable_thinking": False}))
    assert text == "<system>9<user>1+2=<assistant>=="
    assert len(ids) == encoder.length(Problem("1+2=", messages=CHAT)) + 2
    for room in range(len(ids) - 3, len(ids) + 30):
        problem = Problem("1+2=", messages=CHAT, template_options={"enable_thinking": False})
        assert encoder.fits(problem, room) == (len(ids) <= room)


def test_the_last_message_is_cut(model: Path) -> None:
    encoder = PromptEncoder(model, chat_template=True)
    long = Problem("x", messages=(CHAT[0], {"role": "user", "content": "1+" * 50}))
    cut = encoder.cut_problem(long, 60)
    assert encoder.length(cut) == 60
    assert cut.messages[0] == CHAT[0]
    assert cut.messages[1]["content"].startswith("1+1+")


def test_sources_speak_to_the_template_or_are_refused(model: Path, rows: Path) -> None:
    prompts, problems = stream(config(model, rows, system="9", template_options={"enable_thinking": False}, filter="answer < 9")).step(
        0
    )
    assert [prompt.text for prompt in prompts] == ["<system>9<user>1+1=<assistant>=="] * 3
    assert problems[0].template_options == {"enable_thinking": False}
    for cfg, message in (
        (config(model, rows, chat=False, system="9"), r"data\.train\[0\]\.system: .* needs task\.chat_template=true"),
        (
            config(model, rows, chat=False, template_options={"enable_thinking": True}),
            r"data\.train\[0\]\.template_options: is for chat",
        ),
        (
            config(model, rows, template_options={"thinking": True}),
            r"template_options\.thinking: the chat template of .* does not read it",
        ),
        (config(model, rows, template_options={"messages": []}), r"template_options\.messages: is set by the run itself"),
    ):
        with pytest.raises(ValueError, match=message):
            stream(cfg)


def test_a_chat_without_a_template_is_named_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"prompt": list(CHAT), "label": "3"}))
    with pytest.raises(ValueError, match=r"chats\.jsonl, row 1 is asked by a chat, which needs task\.chat_template=true: '1\+2='"):
        stream(config(TINY_DECOMPOSE, path, chat=False)).step(0)


def test_rows_are_chosen_by_their_tokens(model: Path, rows: Path) -> None:
    def kept(cfg: Config) -> list[int]:
        task = make_stream(cfg, made := make_task(cfg.task, 0, cfg.data), prompts_per_step=1).task
        assert task is made
        return sorted({int(task.problem(index).data["answer"]) for index in range(9)})

    bounded = config(model, rows)
    assert kept(bounded) == [2, 21, 61]
    assert kept(config(model, rows, overlong="drop")) == [2, 21]
    assert kept(replace(bounded, data=replace(bounded.data, max_prompt_tokens=40))) == [2]
    assert kept(replace(bounded, data=replace(bounded.data, min_prompt_tokens=40))) == [21, 61]
    with pytest.raises(ValueError, match=r"rows\.jsonl: none of its 3 rows is left"):
        kept(replace(bounded, data=replace(bounded.data, min_prompt_tokens=400)))
    truncated = [len(prompt.token_ids) for prompt in stream(config(model, rows, overlong="truncate")).step(0)[0]]
    assert max(truncated) == 80


def test_records_hold_chats_and_still_read_plain_problems(tmp_path: Path) -> None:
    writer = RolloutWriter(tmp_path)
    problems = {0: Problem("plain", {"answer": 1}), 1: Problem("1+2=", {}, CHAT, {"enable_thinking": False})}
    rollouts = [one_token_rollout(0, 0), one_token_rollout(1, 0)]
    writer.write(0, rollouts, problems, [0.0, 1.0])
    writer.close()
    assert [record.problem for record in read_rollouts(tmp_path, 0)] == [problems[0], problems[1]]
