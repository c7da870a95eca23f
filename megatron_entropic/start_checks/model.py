"""Everything about the checkpoint and the layout that can be known before a process is started."""

from megatron_entropic.checkpoint_files.kind import model_folder
from megatron_entropic.checkpoint_files.manifest import check as check_manifest
from megatron_entropic.config import Config
from megatron_entropic.config.loading import ConfigError
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.hf.check import check_companions, check_hf_dir
from megatron_entropic.hf.layout import check_layout, check_serving
from megatron_entropic.hf.stop_tokens import stop_token_ids


def check_model(cfg: Config, *, weights: bool = True) -> Architecture:
    """The architecture of `model.hf_path`. Raises ValueError for a model that is broken, or cannot be laid out as the settings say.

    `weights`: whether those are needed too.
    """
    folder = model_folder(cfg.model.hf_path)
    arch = Architecture.from_hf(folder.hf_dir)
    if folder.is_distributed or not weights:
        check_companions(folder.hf_dir, arch)
        if weights and (problems := check_manifest(cfg.model.hf_path)):
            raise ConfigError("\n".join(f"{cfg.model.hf_path}: {problem}" for problem in problems))
    else:
        check_hf_dir(folder.hf_dir, arch)
    stop_token_ids(folder.hf_dir)
    problems = check_layout(arch, cfg.parallel, cfg.batch, cfg.rollout)
    if cfg.rollout.engine == "vllm" and cfg.rollout.fleet_dir is None:
        problems += check_serving(arch)
    if problems:
        raise ConfigError("; ".join(problems))
    return arch
