"""Whether a run's data, targets and samples are such that something can be learned."""

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.config import Config
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.policy.transformer_engine import feature_problems
from megatron_entropic.start_checks.data import check_data
from megatron_entropic.start_checks.learning import check_learning
from megatron_entropic.start_checks.outside import check_outside


def run_problems(cfg: Config) -> tuple[str, list[str]]:
    """One line about the run's data, and the problems of the data, the learning settings, or features that this machine lacks.

    The model must be readable.
    """
    arch, remarks = Architecture.from_hf(model_folder(cfg.model.hf_path).hf_dir), ["made by rule"]
    problems = feature_problems(arch, cfg)
    try:
        check_learning(cfg, arch.vocab_size)
        check_outside(cfg)
    except ValueError as error:
        problems.append(str(error))
    try:
        remarks = check_data(cfg) or remarks
    except (ValueError, OSError) as error:
        problems.append(" ".join(str(error).split()))
        remarks = ["unusable"]
    return "; ".join(remarks), problems
