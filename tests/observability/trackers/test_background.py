"""A tracker that raises, hangs or is slow: training goes on, it is said once, and the end of a run waits for a limited time."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_entropic.observability.trackers import background
from megatron_entropic.observability.trackers.background import BackgroundTracker
from megatron_entropic.observability.trackers.delivered import Delivered
from megatron_entropic.observability.trackers.tracker import TrackerRefusedError

LONG = 60.0


class Recording:
    """Notes what it takes. `trouble` is called with each method's name and may raise or wait."""

    run_id = "known"

    def __init__(self, trouble: Callable[[str], None] = lambda method: None) -> None:
        self.taken: list[tuple[Any, ...]] = []
        self.threads: set[str] = set()
        self.trouble = trouble
        self.closed = 0

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.threads.add(threading.current_thread().name)
        self.trouble("log")
        self.taken.append(("log", step, metrics))

    def log_alert(self, alert: str) -> None:
        self.trouble("log_alert")
        self.taken.append(("log_alert", alert))

    def close(self) -> None:
        self.closed += 1
        self.trouble("close")

    @property
    def steps(self) -> list[int]:
        return [call[1] for call in self.taken if call[0] == "log"]


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RETRY_S", (0.01, 0.01))


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """Set at the end of the test, so that no thread is left behind."""
    event = threading.Event()
    yield event
    event.set()


def driven(tracker: Recording, room: int = 100, **named: Any) -> BackgroundTracker:
    background_tracker = BackgroundTracker("mine", lambda: tracker, room=room, **named)
    background_tracker.start()
    background_tracker.wait_made(time.monotonic() + LONG)
    return background_tracker


def end(tracker: BackgroundTracker, seconds: float = LONG) -> None:
    tracker.join(time.monotonic() + seconds)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_everything_is_taken_in_order_in_a_thread_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    tracker, ids, delivered = Recording(), list[str](), list[int]()
    behind = driven(tracker, known=ids.append, delivered=delivered.append)
    for step in range(5):
        behind.log(step, {"a": step})
    behind.submit("log_alert", "fire")
    behind.submit("log_samples", 4, [])  # which it has not
    end(behind)
    behind.close()
    assert tracker.steps == delivered == [0, 1, 2, 3, 4]
    assert tracker.taken[-1] == ("log_alert", "fire")
    assert tracker.threads == {"tracker mine"}
    assert ids == ["known"]
    assert tracker.closed == 1
    assert warnings(caplog) == []


def test_a_call_that_fails_is_made_again(caplog: pytest.LogCaptureFixture) -> None:
    failures = [ConnectionError("http://me:secret@tracker.example: no route"), ConnectionError("still"), None, None]

    def trouble(method: str) -> None:
        if method == "log" and failures and (failure := failures.pop(0)):
            raise failure

    tracker = Recording(trouble)
    behind = driven(tracker)
    behind.log(0, {})
    behind.log(1, {})
    end(behind)
    assert tracker.steps == [0, 1]
    (said,) = warnings(caplog)
    assert "tracker mine failed at log: ConnectionError: http://***@tracker.example: no route" in said


def test_a_tracker_that_goes_on_failing_is_left_out_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    def trouble(method: str) -> None:
        raise SystemExit(3) if method == "log" else OSError("disk full")

    tracker = Recording(trouble)
    behind = driven(tracker)
    for step in range(50):
        behind.log(step, {})
    end(behind)
    assert tracker.taken == []
    first, last, closing = warnings(caplog)
    assert "failed at log: SystemExit: 3" in first
    assert "did not take step 1 and is left out from here on; training goes on, metrics.jsonl has it all" in last
    assert "failed at close: OSError: disk full" in closing


def test_what_is_not_metrics_can_fail_alone(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    def trouble(method: str) -> None:
        calls.append(method)
        if method == "log_alert":
            raise TypeError("no alerts here")

    tracker = Recording(trouble)
    behind = driven(tracker)
    for step in range(3):
        behind.submit("log_alert", "fire")
        behind.log(step, {})
    end(behind)
    assert tracker.steps == [0, 1, 2]
    assert calls.count("log_alert") == 3, "the first alert, three times"
    assert len(warnings(caplog)) == 1


def test_one_that_hangs_holds_nobody_and_is_let_go(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, never: threading.Event
) -> None:
    monkeypatch.setattr(background, "SLOW_S", 0.0)
    begun = threading.Event()

    def trouble(method: str) -> None:
        begun.set()
        never.wait(LONG)

    tracker = Recording(trouble)
    tracker.abandoned = False  # type: ignore[attr-defined]
    tracker.abandon = lambda: setattr(tracker, "abandoned", True)  # type: ignore[attr-defined]
    behind = driven(tracker, room=3)
    behind.log(0, {})
    assert begun.wait(LONG)
    for step in range(1, 10):
        behind.log(step, {})
    end(behind, 0.05)
    said = " | ".join(warnings(caplog))
    assert "has been busy with one call for more than" in said
    assert "is too slow: it misses what comes while tracking.queue is full" in said
    assert "was not done within tracking.flush_s: 3 steps, tables and alerts were not handed over" in said
    assert tracker.abandoned  # type: ignore[attr-defined]
    assert len(warnings(caplog)) == 3, "each once"


def test_one_that_is_dropped_is_not_closed(never: threading.Event) -> None:
    begun, delivered = threading.Event(), list[int]()

    def trouble(method: str) -> None:
        begun.set()
        never.wait(LONG)

    tracker = Recording(trouble)
    behind = driven(tracker, delivered=delivered.append)
    behind.log(0, {})
    behind.log(1, {})
    assert begun.wait(LONG)
    behind.drop()
    never.set()
    end(behind)
    assert (tracker.steps, tracker.closed, delivered) == ([0], 0, [])


def test_what_the_user_must_mend_ends_the_start() -> None:
    def make() -> Any:
        raise TrackerRefusedError("trainer.trackers=mine: log in first")

    behind = BackgroundTracker("mine", make, room=3)
    behind.start()
    with pytest.raises(TrackerRefusedError, match="log in first"):
        behind.wait_made(time.monotonic() + LONG)
    behind.close()


def test_one_that_cannot_be_opened_yet_gets_everything_once_it_can(caplog: pytest.LogCaptureFixture) -> None:
    tracker, failures = Recording(), [ConnectionError("no network")]

    def make() -> Recording:
        if failures:
            raise failures.pop()
        return tracker

    behind = BackgroundTracker("mine", make, room=10)
    behind.log(0, {})
    behind.start()
    behind.wait_made(time.monotonic() + LONG)
    behind.log(1, {})
    end(behind)
    assert tracker.steps == [0, 1]
    assert "cannot be opened yet, training goes on meanwhile: ConnectionError: no network" in caplog.text


def test_one_that_can_never_be_opened_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Any:
        raise ConnectionError("no network")

    behind = BackgroundTracker("mine", make, room=10)
    behind.start()
    behind.wait_made(time.monotonic() + LONG)
    behind.log(0, {})
    end(behind)
    assert [text.partition(":")[0] for text in warnings(caplog)] == [
        "tracker mine cannot be opened yet, training goes on meanwhile",
        "tracker mine cannot be opened and is left out from here on; training goes on, metrics.jsonl has it all",
    ]


def test_a_slow_start_is_not_waited_for(caplog: pytest.LogCaptureFixture, never: threading.Event) -> None:
    tracker = Recording()

    def make() -> Recording:
        never.wait(LONG)
        return tracker

    behind = BackgroundTracker("mine", make, room=10)
    behind.start()
    behind.wait_made(time.monotonic())
    behind.log(0, {})
    assert "is not ready yet; training goes on meanwhile" in caplog.text
    never.set()
    end(behind)
    assert tracker.steps == [0]


def test_a_resumed_run_knows_what_was_delivered(tmp_path: Path) -> None:
    lines = [{"step": step} for step in range(6)]
    fresh = Delivered.of(tmp_path, "wandb")
    assert fresh.missed(lines, known=True) == (), "of a version without notes"
    assert fresh.missed(lines, known=False) == lines, "a tracker that the run did not have"
    fresh.begin("abc", 0)
    for step in (0, 1, 2, 4, 5):  # 3 found the queue full
        fresh.took(step)
    again = Delivered.of(tmp_path, "wandb")
    assert (again.run_id, again.step) == ("abc", 2)
    assert [line["step"] for line in again.missed(lines, known=True)] == [3, 4, 5]
    again.path.write_text('{"run_id": "abc", "st')
    assert Delivered.of(tmp_path, "wandb").run_id is None
