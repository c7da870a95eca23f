"""`megatron-entropic new`: the recipe that it writes for a model and a data file, and what it refuses."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_entropic.cli import main
from megatron_entropic.commands.new_choices import Devices
from megatron_entropic.config import Config
from megatron_entropic.config.loading import load_config
from megatron_entropic.planning.peak import gpu_kind
from megatron_entropic.system.gpus import parse_gpus
from tests.command_line import ROOT, megatron_entropic

TINY = ROOT / "models" / "tiny-addition"
TEMPLATE = "{% for m in messages %}Q:{{ m['content'] }}\nA:{% endfor %}"


def save_rows(path: Path, rows: int = 30, *, worked: bool = True, words: int = 1) -> Path:
    """Rows in GSM8K's shape: a question, and a worked solution that ends in #### and the answer."""
    lines = [
        {
            "question": f"{'Tom has apples. ' * words}{10 + n}+{20 + n}=",
            "answer": f"{f'It is {30 + 2 * n}.' if worked else ''}#### {30 + 2 * n}",
        }
        for n in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def new(*arguments: object) -> int:
    """Exit code of `megatron-entropic new ARGUMENTS`, run in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["new", *map(str, arguments)])
    return int(ended.value.code or 0)


def made(folder: Path, *arguments: object, model: Path = TINY) -> Config:
    """The recipe for the rows in `folder`."""
    output = folder / "mine.py"
    assert new("mine", "--model", model, "--data", folder / "rows.jsonl", "--output", output, "--force", *arguments) == 0
    return load_config(str(output))


@pytest.mark.slow
@pytest.mark.distributed
def test_a_recipe_for_a_tiny_model_trains(tmp_path: Path) -> None:
    """In a folder whose name has a space, a quote and a #; the data too."""
    folder = tmp_path / 'my "own" #1'
    folder.mkdir()
    data = save_rows(folder / "grade school.jsonl")
    assert new("my_recipe", "--model", TINY, "--data", data, "--output", folder / "my_recipe.py") == 0
    text = (folder / "my_recipe.py").read_text()
    assert text.count("        # ") == 9, "a reason for each section"
    settings = ("trainer.steps=1", "batch.prompts_per_step=2", "batch.samples_per_prompt=2", "rollout.max_new_tokens=8")
    outcome = megatron_entropic(
        "train", str(folder / "my_recipe.py"), *settings, "trainer.export_hf=false", f"run.dir={tmp_path / 'run'}"
    )
    assert outcome.code == 0, outcome.output
    assert "1 of 1 steps done" in outcome.output


def test_lengths_template_and_target_follow_from_model_and_data(tmp_path: Path) -> None:
    save_rows(tmp_path / "rows.jsonl")
    cfg = made(tmp_path)
    assert (cfg.run.name, cfg.model.hf_path, cfg.model.dtype) == ("mine", TINY, "float32")
    (source,) = cfg.data.train
    assert (cfg.task.name, source.path, "boxed" in source.prompt_template) == ("data", str(tmp_path / "rows.jsonl"), True)
    assert (cfg.task.chat_template, cfg.task.overlong_prompts) == (False, "refuse")
    assert (cfg.control.kind, cfg.control.target_entropy, cfg.control.target_unit) == ("entropic", 1.0, "initial")
    assert cfg.rollout.max_new_tokens == 64, "solutions of 16 characters, each a token; 64 at least"
    assert (cfg.batch.prompts_per_step, cfg.optimizer.lr, cfg.trainer.steps) == (8, 2e-4, 20)

    save_rows(tmp_path / "rows.jsonl", worked=False, rows=4)
    final = made(tmp_path)
    assert (final.rollout.max_new_tokens, final.batch.prompts_per_step) == (256, 4), "a CPU's, and no more prompts than there are"

    chat = tmp_path / "chat"
    shutil.copytree(TINY, chat)
    config = json.loads((chat / "tokenizer_config.json").read_text())
    (chat / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": TEMPLATE}))
    assert made(tmp_path, model=chat).task.chat_template


def test_parquet_and_chats_that_say_how_to_answer_are_taken_as_they_are(tmp_path: Path) -> None:
    """verl's rows of GSM8K."""
    rows = [
        {
            "data_source": "openai/gsm8k",
            "prompt": [{"role": "user", "content": f'{n}+1? Let us think, and output the answer after "####".'}],
            "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
        }
        for n in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    output = tmp_path / "verl.py"
    assert new("verl", "--model", TINY, "--data", tmp_path / "train.parquet", "--output", output) == 0
    (source,) = load_config(str(output)).data.train
    assert (source.path, source.prompt_template) == (str(tmp_path / "train.parquet"), "{prompt}")
    assert "| problems | 20 |" in output.read_text()


def test_a_short_context_is_shared_out(tmp_path: Path) -> None:
    """Of 512 tokens, one a character."""
    save_rows(tmp_path / "rows.jsonl", words=18, worked=False)
    assert made(tmp_path).rollout.max_new_tokens in range(128, 160), "what a prompt of about 370 leaves"
    rows = (tmp_path / "rows.jsonl").read_text()
    save_rows(tmp_path / "rows.jsonl", words=26, rows=1)
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text() + rows)
    some = made(tmp_path)
    assert (some.rollout.max_new_tokens, some.task.overlong_prompts) == (128, "drop")


def test_layouts_come_from_the_plan_for_the_gpus_there_are(tmp_path: Path) -> None:
    save_rows(tmp_path / "rows.jsonl")
    cfg = made(tmp_path, "--gpus", "8", "--gpu", "a100")
    assert cfg.parallel.world_size + cfg.rollout.servers * cfg.rollout.tensor == 8
    assert (cfg.model.dtype, cfg.rollout.engine, cfg.batch.max_tokens_per_micro_batch) == ("bfloat16", "vllm", 16384)
    alone = made(tmp_path, "--gpus", "1")
    assert (alone.parallel.world_size, alone.rollout.share_gpu) == (1, True)

    found = Devices.found(parse_gpus("NVIDIA H100 80GB HBM3, 580.1, 81559, 4, 0, Disabled\n" * 2))
    assert found.cluster is not None
    assert (found.cluster.gpu.name, found.cluster.gpus, found.named) == ("h100", 2, "2 x NVIDIA H100 80GB HBM3")
    odd = Devices.found(parse_gpus("NVIDIA Whatever, 580.1, 46068, 4, 0, Disabled\n" * 2))
    assert odd.cluster is not None
    assert odd.cluster.gpu.name == "l40s", "the nearest in memory"
    assert [gpu_kind(name) for name in ("NVIDIA A100-SXM4-40GB", "NVIDIA A100-SXM4-80GB", "Tesla T4")] == ["a100-40", "a100", None]


def test_what_cannot_be_made_a_recipe_of_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = save_rows(tmp_path / "rows.jsonl"), tmp_path / "x.py"
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"question": "1+1=", "answer": null}\n')
    (tmp_path / "half").mkdir()
    shutil.copy(TINY / "config.json", tmp_path / "half")
    save_rows(tmp_path / "long.jsonl", words=40)
    there = tmp_path / "there.py"
    there.write_text("mine")
    for arguments, says in (
        (("x", "--model", tmp_path / "none", "--data", data, "--output", out), "none/config.json: no such file"),
        (("x", "--model", tmp_path / "half", "--data", data, "--output", out), "half/tokenizer.json: missing"),
        (("x", "--model", TINY, "--data", tmp_path / "empty.jsonl", "--output", out), "empty.jsonl: is empty"),
        (("x", "--model", TINY, "--data", tmp_path / "none.jsonl", "--output", out), "none.jsonl: no such file"),
        (("x", "--model", TINY, "--data", tmp_path / "bad.jsonl", "--output", out), "bad.jsonl, line 1: no field"),
        (("x", "--model", TINY, "--data", tmp_path / "long.jsonl", "--output", out), "most leave less than a quarter"),
        (("x", "--model", TINY, "--data", data, "--output", there), "--force overwrites it"),
        (("my-recipe", "--model", TINY, "--data", data), "'my-recipe' is no name of a Python function"),
        (("class", "--model", TINY, "--data", data), "'class' is no name"),
        (("x", "--model", TINY, "--data", data, "--output", tmp_path / "x.txt"), "a recipe is a file of Python"),
        (("x", "--model", TINY, "--data", data, "--output", out, "--gpus", "8", "--gpu", "h1000"), "--gpu=h1000: not one of"),
        (("x", "--model", TINY, "--data", data, "--output", out, "--gpus", "0"), "--gpus"),
    ):
        assert new(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert says in error
        assert error.count("error: ") == 1, error
    assert there.read_text() == "mine"
    assert not out.exists()
