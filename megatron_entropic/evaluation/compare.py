"""Two models on the same problems: how far their scores are apart, and whether that may be luck."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from megatron_entropic.evaluation.intervals import LEVEL, PairedTest, paired_test
from megatron_entropic.evaluation.results import Results
from megatron_entropic.evaluation.set_scores import SetScores, paired

CLEAR = 1 - LEVEL


@dataclass(frozen=True)
class SetComparison:
    """Of one set: mean scores of both on the problems that both answered, and the test of the difference.

    `adjusted` is the p-value multiplied for the number of sets that were looked at (Holm): of several, one looks clear by luck.
    """

    name: str
    first: float
    second: float
    test: PairedTest
    adjusted: float
    only_first: int
    only_second: int
    remark: str

    def __str__(self) -> str:
        test = self.test
        how = "exact" if test.exact else "random"
        unpaired = self.only_first + self.only_second
        left = f"; {unpaired} problems that only one answered are left out" if unpaired else ""
        several = f", {self.adjusted:.3g} for all sets together" if self.adjusted != test.p_value else ""
        return (
            f"{self.name}: A {self.first:.3f}, B {self.second:.3f}, B - A {test.difference:+.3f} (95% interval {test.low:+.3f} to "
            f"{test.high:+.3f}); p = {test.p_value:.3g}{several} ({how} permutation test of {test.prompts} paired problems, "
            f"{test.differing} of which differ{left}). {self.verdict}{self.remark}"
        )

    @property
    def verdict(self) -> str:
        """In a sentence."""
        if self.adjusted < CLEAR:
            return "B is better." if self.test.difference > 0 else "A is better."
        return "No difference is shown: it may be luck; more problems or samples would tell."


def compare(first: Results, second: Results) -> list[SetComparison]:
    """The sets that both have, in the first one's order. Raises ValueError when there is none, or no problem of one is the same."""
    others = {each.name: each for each in second.sets}
    tested = []
    for one in first.sets:
        if (other := others.get(one.name)) is None:
            continue
        of_first, of_second = paired(one, other)
        if not of_first:
            raise ValueError(f"set {one.name}: {first.model} and {second.model} answered different problems; nothing can be paired")
        tested.append((one, other, paired_test(of_first, of_second), sum(of_first) / len(of_first), sum(of_second) / len(of_second)))
    if not tested:
        names = [", ".join(each.name for each in results.sets) for results in (first, second)]
        raise ValueError(f"no set in common: {first.model} has {names[0]}; {second.model} has {names[1]}")
    adjusted = _holm([test.p_value for _, _, test, _, _ in tested])
    return [
        SetComparison(
            one.name,
            mean,
            other_mean,
            test,
            p_value,
            len(one.problems) - test.prompts,
            len(other.problems) - test.prompts,
            _unlike(one, other),
        )
        for (one, other, test, mean, other_mean), p_value in zip(tested, adjusted, strict=True)
    ]


def _unlike(first: SetScores, second: SetScores) -> str:
    """A remark where the two were not sampled alike; empty where they were."""
    how = [f"T={each.temperature:g}, top_p={each.top_p:g}, at most {each.max_new_tokens} tokens" for each in (first, second)]
    return "" if how[0] == how[1] else f" They were not sampled alike: A {how[0]}; B {how[1]}."


def _holm(p_values: list[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): of n, the smallest times n, the next times n - 1, ..., never below the one before."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def comparison_json(first: Results, second: Results, compared: list[SetComparison]) -> dict[str, Any]:
    """All of it in JSON's types."""
    sets = [{**dataclasses.asdict(each), "verdict": each.verdict} for each in compared]
    return {"first": first.model, "second": second.model, "sets": sets}
