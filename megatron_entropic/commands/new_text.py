"""The recipe that `megatron-entropic new` writes, as text: readable Python in which each value has its reason."""

from megatron_entropic.commands.new_choices import Choices, Devices
from megatron_entropic.commands.new_data import DataFacts
from megatron_entropic.config import Config
from megatron_entropic.hf.architectures import Architecture
from megatron_entropic.planning.model_memory import ModelSize
from megatron_entropic.planning.tables import parameter_count

_IMPORTED = ("Batch", "", "Control", "Data", "Model", "Optimizer", "Parallel", "Rollout", "Run", "Task", "Trainer")


def recipe_text(function: str, name: str, arch: Architecture, data: DataFacts, devices: Devices, choices: Choices) -> str:
    """The file of a recipe whose function is `function` and whose run is called `name`."""
    cfg, why = choices.cfg, choices.why
    imports = "".join(f"    {name},\n" for name in sorted([*(f"{section}Config" for section in _IMPORTED), "DataSource"]))
    start = "the model's chat template" if cfg.task.chat_template else "no chat template: the model has none"
    sections = [
        f"run=RunConfig(name={_literal(name)}),",
        f"# dtype: {why['dtype']}.",
        f"model=ModelConfig({_model(cfg)}),",
        f"# Layout: {why['layout']}.",
        f"parallel=ParallelConfig({_parallel(cfg)}),",
        f"# Batch: {why['batch']}.",
        f"batch=BatchConfig({_batch(cfg)}),",
        "# Target: the entropy that the model starts with, measured before the first update; 0.8 would hold 80% of it.",
        'control=ControlConfig(kind="entropic", target_entropy=1.0, target_unit="initial"),',
        f"# Learning rate: {why['lr']}.",
        f"optimizer=OptimizerConfig(lr={cfg.optimizer.lr:g}),".replace("e-0", "e-"),
        f"# Responses: {why['response']}.",
        f"rollout=RolloutConfig({_rollout(cfg)}),",
        f"# Prompts: {start}.",
        f"task=TaskConfig({_task(cfg, data)}),",
        f"# Data: {_asked(data)}.",
        f"data=DataConfig({data.source}),",
        f"# Steps: two passes over the {data.rows} problems, within bounds.",
        f"trainer=TrainerConfig(steps={choices.steps}),",
    ]
    title = f"{_plain(data.path.name)} for {_plain(cfg.model.hf_path.name)} under EntroPIC"
    return (
        f'"""{title}. Written by `megatron-entropic new`; it is yours.\n\n'
        f"{_facts(arch, data, devices, cfg)}"
        '"""\n\n'
        "from pathlib import Path\n\n"
        f"from megatron_entropic.config import (\n{imports})\n\n"
        f"MODEL = Path({_literal(str(cfg.model.hf_path))})\n"
        f"DATA = Path({_literal(str(data.path))})\n\n\n"
        f"def {function}() -> Config:\n"
        '    """Entropy held where the model starts."""\n'
        "    return Config(\n" + "".join(f"        {line}\n" for line in sections) + "    )\n"
    )


def _facts(arch: Architecture, data: DataFacts, devices: Devices, cfg: Config) -> str:
    template = "with a chat template" if cfg.task.chat_template else "without a chat template"
    solutions = "none, final answers alone" if data.solutions is None else str(data.solutions)
    parameters = parameter_count(ModelSize.of(arch).total)
    rows = {
        "model": f"{arch.architecture}, {parameters} parameters, context {arch.max_positions}, {template}",
        "problems": str(data.rows),
        "prompts": str(data.prompts),
        "worked solutions": solutions,
        "devices": devices.named,
    }
    return "| found | |\n|---|---|\n" + "".join(f"| {name} | {_plain(value)} |\n" for name, value in rows.items())


def _model(cfg: Config) -> str:
    recompute = f', recompute="{cfg.model.recompute}"' if cfg.model.recompute != "none" else ""
    return f'hf_path=MODEL, dtype="{cfg.model.dtype}"{recompute}'


def _parallel(cfg: Config) -> str:
    layout = cfg.parallel
    sizes = [f"{axis}={getattr(layout, axis)}" for axis in ("tensor", "pipeline", "expert", "data") if getattr(layout, axis) != 1]
    return ", ".join([*sizes, *(["sequence=True"] if layout.sequence else [])])


def _batch(cfg: Config) -> str:
    batch = cfg.batch
    return (
        f"prompts_per_step={batch.prompts_per_step}, samples_per_prompt={batch.samples_per_prompt}, "
        f"max_tokens_per_micro_batch={batch.max_tokens_per_micro_batch}"
    )


def _rollout(cfg: Config) -> str:
    rollout = cfg.rollout
    servers = f", servers={rollout.servers}, tensor={rollout.tensor}" if rollout.engine == "vllm" else ""
    shared = ", share_gpu=True" if rollout.share_gpu else ""
    return f'engine="{rollout.engine}"{servers}{shared}, max_new_tokens={rollout.max_new_tokens}'


def _task(cfg: Config, data: DataFacts) -> str:
    overlong = f', overlong_prompts="{cfg.task.overlong_prompts}"' if cfg.task.overlong_prompts != "refuse" else ""
    return f"{data.task}, chat_template={cfg.task.chat_template}{overlong}"


def _asked(data: DataFacts) -> str:
    if data.template == "{prompt}":
        return "prompts as they are; docs/data.md has filters, a part to hold out, and further sources"
    return "no prompt says how the answer is to be given, so each asks for a box; docs/data.md has filters and further sources"


def _literal(text: str) -> str:
    """A Python string in ASCII, in double quotes where nothing in it needs others."""
    quoted = ascii(text)
    return quoted if "'" in text or '"' in text else f'"{quoted[1:-1]}"'


def _plain(text: str) -> str:
    """Text that can stand in a docstring."""
    return "".join(character if character.isprintable() and character not in '\\"' else "?" for character in text)
