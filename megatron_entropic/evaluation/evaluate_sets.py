"""A model scored on sets of problems, outside of training: `megatron-entropic evaluate MODEL --sets`."""

from collections.abc import Sequence
from dataclasses import replace

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config, ValidationConfig
from megatron_entropic.config.validation import ValidationSet
from megatron_entropic.evaluation.answering import answer, sampling_engine
from megatron_entropic.evaluation.progress import Counter
from megatron_entropic.evaluation.results import Results
from megatron_entropic.evaluation.set_scores import SetScores, score_set
from megatron_entropic.evaluation.sets import open_set
from megatron_entropic.platform import check_gpus_are_seen
from megatron_entropic.rollout.prompt_encoder import load_tokenizer
from megatron_entropic.rollout.source import make_engine
from megatron_entropic.rollout.vocabulary import Vocabulary
from megatron_entropic.system.devices import ask_for_cpu, without_training_ranks


def evaluate_sets(cfg: Config, sets: Sequence[ValidationSet], model: str) -> Results:
    """The scores of the policy of `cfg.model`, called `model`, on each set; progress on the terminal.

    The same engine, samples and judging as validation in training: the same weights get the same scores. Raises ConfigError before
    anything is started for a set that cannot be read; RolloutError, VerifierError.
    """
    cfg = replace(cfg, validation=ValidationConfig(every=1, sets=tuple(sets)))
    opened = [open_set(cfg, settings) for settings in sets]
    without_training_ranks()
    if cfg.parallel.device == "cpu":
        ask_for_cpu()
    check_gpus_are_seen()
    vocabulary = Vocabulary(load_tokenizer(model_folder(cfg.model.hf_path).hf_dir))
    engine = sampling_engine(make_engine(cfg), cfg.rollout.engine)
    scores: list[SetScores] = []
    try:
        engine.start()
        with Counter(sum(len(each.prompts) for each in opened)) as counter:
            for each in opened:
                answers = answer(engine, each, cfg.reward, vocabulary, step=0, answered=counter.add)
                scores.append(score_set(each, answers))
    finally:
        engine.close()
    return Results(model, tuple(scores), tuple(f"{each.name}: {each.remark}" for each in opened if each.remark))
