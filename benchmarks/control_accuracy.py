"""How closely the entropy is held, by batch and by how fast the policy moves: the controller against simulated policies.

    python -m benchmarks.control_accuracy [--runs 16]

Seeded, pure Python, a minute on one core; the same numbers on every machine. A cell reads "held / mean / settled": the entropy
itself around the target and the mean of the last half of 100 steps (root mean squares, shares of the target), and the update
from which on the mean of five stays within 5% of it. The target is 0.9 of the start. Sampling noise of a step is
`noise of a sample / sqrt(samples)`.
"""

import argparse
import math
from collections.abc import Iterator, Sequence

from megatron_entropic.config import ControlConfig
from megatron_entropic.control.accuracy import expected_accuracy

PROMPTS = (12, 32, 128, 512)
SAMPLES_PER_PROMPT = 8
SAMPLE_NOISES = (0.6, 0.15)
"""Short answers of a pretrained model (SmolLM2, 17 tokens), and responses that resemble each other."""
GAINS = (0.1, 0.02, 0.005)
MINI_BATCHES = (1, 4)
STEPS = 100


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=16, help="simulated runs of each cell (default: %(default)s)")
    print("\n".join(table(parser.parse_args(arguments).runs)))


def table(runs: int) -> Iterator[str]:
    """Markdown."""
    titles = [f"{gain:.1%} an update{f', {mini} mini-batches' if mini > 1 else ''}" for mini in MINI_BATCHES for gain in GAINS]
    yield "| noise of a sample | prompts x 8 | noise of a step | " + " | ".join(titles) + " |"
    yield "|" + "---|" * (3 + len(titles))
    for sample_noise in SAMPLE_NOISES:
        for prompts in PROMPTS:
            noise = sample_noise / math.sqrt(prompts * SAMPLES_PER_PROMPT)
            cells = [_cell(noise, gain, mini, runs) for mini in MINI_BATCHES for gain in GAINS]
            yield f"| {sample_noise:g} | {prompts} | {noise:.1%} | " + " | ".join(cells) + " |"


def _cell(noise: float, gain: float, mini_batches: int, runs: int) -> str:
    control = ControlConfig(target_entropy=0.9, target_unit="initial")
    per_mini_batch = noise * math.sqrt(mini_batches)
    accuracy = expected_accuracy(
        control, noise=per_mini_batch, gain=gain, updates=STEPS * mini_batches, mini_batches=mini_batches, runs=runs
    )
    return f"{accuracy.tracking:.1%} / {accuracy.mean_error:.1%} / {accuracy.settled or 'later'}"


if __name__ == "__main__":
    main()
