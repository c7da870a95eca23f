"""Alerts posted to a real receiver, also to ones that hang, fail, or close the connection; the URL stays a secret."""

import logging
import time

import pytest

from megatron_entropic.observability.alerts import Webhook, webhook
from megatron_entropic.observability.trackers import Alert
from tests.observability.alerts.receiver import Receiver

BEGINS = Alert("no_signal", "begins", 11, 5, 'no "reward" signal: é \U0001f600')


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(webhook, "RETRY_S", (0.01, 0.01, 0.01))
    caplog.set_level(logging.DEBUG)


def post(receiver: Receiver, *alerts: Alert, timeout_s: float = 30.0, seconds: float = 60.0) -> None:
    hook = Webhook(receiver.url, "my run", timeout_s)
    for alert in alerts:
        hook.post(alert)
    hook.close(time.monotonic() + seconds)
    hook.close(time.monotonic())


def test_an_alert_is_one_post_that_slack_understands(caplog: pytest.LogCaptureFixture) -> None:
    with Receiver() as receiver:
        post(receiver, BEGINS, Alert("no_signal", "over", 20, 9, "after 9 steps"))
    first, second = receiver.posted
    assert first["text"] == 'my run: no signal (step 12): no "reward" signal: é \U0001f600'
    assert {name: first[name] for name in ("run", "kind", "state", "step", "steps", "message")} == {
        "run": "my run",
        "kind": "no_signal",
        "state": "begins",
        "step": 11,
        "steps": 5,
        "message": BEGINS.message,
    }
    assert second["text"] == "my run: no signal is over (step 21): after 9 steps"
    assert receiver.headers[0]["Content-Type"] == "application/json"
    assert caplog.text == ""


@pytest.mark.parametrize("trouble", [500, 503, 429, "close", "garbage"])
def test_what_may_pass_is_tried_again(trouble: int | str, caplog: pytest.LogCaptureFixture) -> None:
    with Receiver(trouble, trouble) as receiver:
        post(receiver, BEGINS)
    assert [content["state"] for content in receiver.posted] == ["begins"] * 3
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("trouble", "tries", "said"),
    [
        (500, 4, "it answered 500 Internal Server Error"),
        (404, 1, "it answered 404 Not Found"),
        (301, 1, "it answered 301 Moved Permanently"),
        (307, 1, "it answered 307 Temporary Redirect"),
        ("close", 4, "RemoteDisconnected"),
        ("garbage", 4, "BadStatusLine"),
    ],
)
def test_what_stays_is_said_once_without_the_url(trouble: int | str, tries: int, said: str, caplog: pytest.LogCaptureFixture) -> None:
    with Receiver(*[trouble] * tries) as receiver:
        post(receiver, BEGINS)
    assert len(receiver.posted) == tries
    assert f"alert no signal (step 12) could not be posted to alerts.webhook (127.0.0.1): {said}" in caplog.text
    assert len(caplog.records) == 1
    assert "HIDDEN" not in caplog.text


def test_one_that_hangs_is_given_up_and_holds_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with Receiver(*["hang"] * 4) as receiver:
        post(receiver, BEGINS, timeout_s=0.05)
        assert "no answer within alerts.webhook_timeout_s=0.05 s" in caplog.text
        deadline = time.monotonic() + 10  # on a busy machine the client gives up before the receiver has read
        while len(receiver.posted) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(receiver.posted) == 4
    with Receiver("hang") as receiver:
        post(receiver, BEGINS, seconds=0.05)
        assert "alerts.webhook (127.0.0.1) was not done at the end of the run" in caplog.text


def test_nobody_there(caplog: pytest.LogCaptureFixture) -> None:
    hook = Webhook("http://127.0.0.1:9/services/HIDDEN", "my run", 5)
    hook.post(BEGINS)
    hook.close(time.monotonic() + 60)
    assert "alerts.webhook (127.0.0.1): ConnectionRefusedError: Connection refused" in caplog.text
    assert "HIDDEN" not in caplog.text


def test_more_alerts_than_can_wait_are_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(webhook, "_ROOM", 2)
    with Receiver("hang") as receiver:
        hook = Webhook(receiver.url, "my run", 60)
        for _ in range(20):
            hook.post(BEGINS)
        hook.close(time.monotonic())
    assert caplog.text.count("is too slow: alerts are left out") == 1
