"""Verdict on the facts gathered on the nodes: which node is unlike the others, short of something, or cut off."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LAST_WORDS = 3


@dataclass(frozen=True)
class NodeLimits:
    """Requirements on a node: bytes free where the run is written and in TMPDIR, GPUs, and a clock like the others'."""

    run_dir_bytes: int
    tmp_bytes: int
    clock_skew_s: float


def judge_facts(nodes: Sequence[str], facts: Mapping[str, Mapping[str, Any]], limits: NodeLimits, words: Sequence[str]) -> list[str]:
    """A line for each problem, naming the node; empty when all nodes are fit. `words` is what the step said besides."""
    problems = [f"{node}: {_silence(number, node, words)}" for number, node in enumerate(nodes) if node not in facts]
    known = {node: facts[node] for node in nodes if node in facts}
    for node, found in known.items():
        problems += [f"{node}: {problem}" for problem in found["problems"]]
        problems += _short_of_space(node, found, limits)
    problems += _odd_ones_out(known)
    answering = {node: found["reached"] for node, found in known.items() if "reached" in found}  # others have their line already
    problems += _cut_off(
        {node: {peer: why for peer, why in reached.items() if peer in answering} for node, reached in answering.items()}
    )
    problems += _clocks(known, limits.clock_skew_s)
    return problems


def _silence(task: int, node: str, words: Sequence[str]) -> str:
    said = [word for word in words if re.match(rf"0*{task}: ", word) or re.search(rf"\b{re.escape(node)}\b", word)]
    return "did not report" + (": " + " | ".join(said[-_LAST_WORDS:]) if said else " (no output)")


def _short_of_space(node: str, found: Mapping[str, Any], limits: NodeLimits) -> list[str]:
    wanted = {"run_dir": limits.run_dir_bytes, "tmp": limits.tmp_bytes}
    return [
        f"{node}: disk full: {place['path']} has {_gib(place['free'])} free, {_gib(wanted[kind])} are needed"
        for kind, place in found["disk"].items()
        if place["free"] < wanted[kind]
    ]


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _odd_ones_out(facts: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Nodes whose versions, source or model differ from what most nodes have (in a tie: from the first node)."""
    problems = []
    names = sorted({name for found in facts.values() for name in found["same"]})
    for name in names:
        values = {node: found["same"][name] for node, found in facts.items() if name in found["same"]}
        usual = Counter(values.values()).most_common(1)[0][0]  # among equals the first node's
        for node, value in values.items():
            if value != usual:
                others = [other for other in values if values[other] == usual]
                problems.append(f"{node}: {name} is {value or 'missing'}, but {usual or 'missing'} on {_some(others)}")
    return problems


def _some(nodes: Sequence[str]) -> str:
    return ", ".join(nodes) if len(nodes) <= 4 else f"{', '.join(nodes[:3])} and {len(nodes) - 3} more"


def _cut_off(reached: Mapping[str, Mapping[str, str | None]]) -> list[str]:
    """Nodes that others cannot reach. `reached` maps node, then peer, to what went wrong (None: reached)."""
    failures = {(source, peer): why for source, peers in reached.items() for peer, why in peers.items() if why}
    problems = []
    while failures:
        # The node with most failures, whichever way, is the bad one; what is left after it is another's.
        blamed = Counter(node for pair in failures for node in pair).most_common(1)[0][0]
        inward = [source for source, peer in failures if peer == blamed]
        outward = [peer for source, peer in failures if source == blamed]
        why = next(why for pair, why in failures.items() if blamed in pair)
        parts = [f"cannot be reached from {_some(inward)}"] if inward else []
        parts += [f"cannot reach {_some(outward)}"] if outward else []
        problems.append(f"{blamed}: {' and '.join(parts)}: {why}")
        failures = {pair: why for pair, why in failures.items() if blamed not in pair}
    return problems


def _clocks(facts: Mapping[str, Mapping[str, Any]], limit_s: float) -> list[str]:
    """Nodes whose clock is further than `limit_s` from the median; offsets are as the first node that measured them saw them."""
    seen_by = next((found for found in facts.values() if found.get("clock")), None)
    if seen_by is None:
        return []
    offsets: Mapping[str, float] = seen_by["clock"]
    middle = statistics.median(offsets.values())
    return [
        f"{node}: its clock is {offset - middle:+.1f} s off the other nodes'"
        for node, offset in offsets.items()
        if abs(offset - middle) > limit_s
    ]


def judge_all_reduce(nodes_of_ranks: Sequence[str], results: Mapping[int, Mapping[str, Any]], words: Sequence[str]) -> list[str]:
    """A line for each rank whose all-reduce failed; when all failed for one reason, only the first says it."""
    problems = []
    arrived = [rank for rank in range(len(nodes_of_ranks)) if results.get(rank, {}).get("joined")]
    for rank, node in enumerate(nodes_of_ranks):
        result = results.get(rank)
        if result is None:
            problems.append(f"{node}: rank {rank} {_silence(rank, node, words)}")
        elif result.get("error") and (not result["joined"] or len(arrived) == len(nodes_of_ranks)):
            problems.append(f"{node}: rank {rank} did not complete an all-reduce over {result['backend']}: {result['error']}")
    return problems
