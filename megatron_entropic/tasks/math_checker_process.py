"""The process of math_checker.py: one JSON line [known, answer] in, one word out. Ends with its input, or at its limits."""

import json
import logging
import resource
import signal
import sys

MEMORY_BYTES = 4 * 2**30


def main() -> None:
    """Compares until the input ends; `sys.argv[1]` seconds each."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    from math_verify import LatexExtractionConfig, parse, verify

    logging.disable(logging.WARNING)  # math-verify's own timeouts are off, which it warns of: they cannot end long arithmetic
    boxes = [LatexExtractionConfig(boxed_match_priority=0)]

    def read(answer: str) -> list[object]:
        found: list[object] = parse(f"$\\boxed{{{answer}}}$", extraction_config=boxes, parsing_timeout=None)
        return found

    # The default action of the alarm ends the process, wherever it computes.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    seconds = int(sys.argv[1])
    print("ready", flush=True)
    for line in sys.stdin:
        known, answer = json.loads(line)
        signal.alarm(seconds)
        expected = read(known)
        if not expected:
            outcome = "unreadable"
        else:
            outcome = "same" if verify(expected, read(answer), timeout_seconds=None) else "different"
        signal.alarm(0)
        print(outcome, flush=True)


if __name__ == "__main__":
    main()
