"""Settings of validation: presets and what overrides them, what is refused, and that older runs load."""

import pytest

from megatron_entropic.config.loading import ConfigError, from_dict, load_config, to_dict
from megatron_entropic.config.resume import differences, refuse
from megatron_entropic.config.validation import PRESETS, ValidationSet


def sets(text: str) -> tuple[ValidationSet, ...]:
    return load_config(None, [f"validation.sets={text}"]).validation.sets


def test_presets_by_name_are_what_the_papers_report() -> None:
    aime, math500 = sets("[aime24, math500]")
    assert (aime.samples, aime.temperature, aime.greedy) == (32, 0.6, False)
    assert (math500.samples, math500.temperature, math500.greedy) == (4, 0.6, True)
    assert math500.source.path == "HuggingFaceH4/MATH-500"
    assert math500.source.answer_field == "answer"
    assert {each.name for each in sets(f"[{', '.join(PRESETS)}]")} == set(PRESETS)


def test_a_file_of_the_users_replaces_the_hubs_with_its_fields() -> None:
    (mine,) = sets("[{name: aime24, path: '/data/exp #2/a b.jsonl', samples: 8}]")
    assert (mine.path, mine.samples, mine.temperature) == ("/data/exp #2/a b.jsonl", 8, 0.6)
    assert (mine.split, mine.prompt_field, mine.answer_field) == ("train", "", "")
    assert "boxed" in mine.prompt_template
    (task,) = sets("[{name: aime24, task: addition}]")
    assert (task.path, task.samples) == ("", 4)


def test_one_set_needs_no_list_and_settings_come_back_as_saved() -> None:
    assert sets("math500") == sets("[math500]")
    cfg = load_config(None, ["validation.every=5", "validation.sets=[aime24, {name: held, path: f.jsonl}, decompose]"])
    assert from_dict(to_dict(cfg), origin="saved") == cfg
    older = to_dict(cfg)
    del older["validation"]
    assert from_dict(older, origin="older").validation.every == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["validation.every=2"], r"validation\.sets is empty; name one, such as \[aime24\]"),
        (["validation.sets=[aime]"], "'aime' is no preset; did you mean 'aime2[45]'"),
        (["validation.sets=[{name: a b, task: addition}]"], "must be 1 to 60 letters"),
        (["validation.sets=[{name: ../x, task: addition}]"], "must be 1 to 60 letters"),
        (["validation.sets=[addition, {name: addition, path: f}]"], "two sets are called addition"),
        (["validation.sets=[{name: a, path: f, task: addition}]"], "name a file or a task"),
        (["validation.sets=[{name: a, task: additon}]"], "did you mean 'addition'"),
        (["validation.sets=[{name: a, task: addition, verifier: exact}]"], "set a: verifier is about a file"),
        (["validation.sets=[{name: a, options: {low: 3}}]"], "options are a task's"),
        (["validation.sets=[{name: a, path: f, temperature: 0}]"], "set samples=1, or greedy=true"),
        (["validation.sets=[{name: a, path: f, pass_at: 5}]"], "pass_at=5 needs as many samples; there are 4"),
        (["validation.sets=[{name: a, path: f, top_p: 0}]"], "greater than 0"),
        (["validation.sets=[{name: a, pth: f}]"], "pth"),
        (["validation.sets=[{name: a, path: f, verifier_options: {x: 1}}]"], "verifier_options belong to one verifier"),
        (["validation.at_start=true"], r"validation\.every=0 validates never"),
        (["validation.every=1", "validation.sets=[addition]", "validation.best=reward/mean"], "must be validation/NAME/STATISTIC"),
        (["validation.every=1", "validation.sets=[addition]", "validation.best=validation/addition/greedy"], "greedy=true"),
        (
            ["validation.every=1", "validation.sets=[addition]", "rollout.engine=replay", "rollout.replay_path=x"],
            "rollout.engine=replay samples nothing",
        ),
    ],
)
def test_what_cannot_be_meant_is_one_error_that_says_what_to_do(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, words)


def test_a_resumed_run_may_be_validated_otherwise() -> None:
    before, now = load_config(None), load_config(None, ["validation.every=5", "validation.sets=[math500]"])
    changed = differences(to_dict(before), to_dict(now))
    assert [change.setting for change in changed] == ["validation.every", "validation.sets"]
    refuse(changed, before.run_dir)
