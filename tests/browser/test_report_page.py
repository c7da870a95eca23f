"""report.html and comparison.html in Chromium: small, without a word in the console, nothing asked for, the chart works."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page

from megatron_entropic.observability.comparison import write_comparison
from megatron_entropic.observability.report import write_report
from tests.browser.conftest import Watched
from tests.observability.synthetic_runs import make_run_dir, synthetic_metrics

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.slow]
STEPS = 5000
FURTHER = 60
"""Metrics that this run has beyond those of every run: validation sets, parts of rewards."""
SCORES = ("avg", "avg_low", "avg_high", "pass")
MEGABYTE = 10**6
SPIKE = 3217
"""The step, from 0, at which one metric leaps; one of five thousand."""


@pytest.fixture(scope="module")
def long_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5,000 steps in which every metric has a noise of its own."""
    run_dir = make_run_dir(tmp_path_factory.mktemp("long"), "long", kind="entropic+aent", steps=2, planned=STEPS)
    noise = np.random.default_rng(0).standard_normal((STEPS, 150))
    lines = []
    for step, metrics in enumerate(synthetic_metrics(STEPS, "entropic+aent")):
        metrics |= {f"validation/set-{number // 4}/{SCORES[number % 4]}": 0.5 for number in range(FURTHER)}
        kept = ("control/phase", "control/gains_tuned", "control/target_entropy")
        for column, (name, value) in enumerate(metrics.items()):
            if value is not None and name not in kept:
                metrics[name] = abs(value or 0.1) * (1 + 0.05 * noise[step, column])
        metrics["grad_norm"] = 77.0 if step == SPIKE else metrics["grad_norm"]
        lines.append(json.dumps({**metrics, "step": step}))
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return run_dir


def load_times(page: Page) -> str:
    shown = page.evaluate("performance.getEntriesByType('navigation').map((entry) => Math.round(entry.loadEventEnd))")
    return f"loaded after {shown[0]} ms"


def test_the_report_of_5000_steps_is_small_and_quiet(long_run: Path, open_page: Callable[..., Watched]) -> None:
    path = write_report(long_run)
    assert path.stat().st_size < 5 * MEGABYTE
    print(f"{path.stat().st_size / MEGABYTE:.2f} MB")
    for scheme in ("light", "dark"):
        watched = open_page(scheme)
        watched.page.goto(path.as_uri())
        print(scheme, load_times(watched.page))
        assert watched.asked == [path.as_uri()]
        background = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == {"light": "rgb(246, 247, 249)", "dark": "rgb(15, 18, 21)"}[scheme]
        assert watched.page.locator(".plots svg").count() >= 10


def test_the_chart_of_any_metric_keeps_a_spike_of_one_step(long_run: Path, open_page: Callable[..., Watched]) -> None:
    page = open_page().page
    page.goto((long_run / "report.html").as_uri())
    page.select_option("#explorer select", "grad_norm")
    assert "lowest and highest of each few steps" in page.inner_text("#explorer p")
    page.locator("#explorer svg").scroll_into_view_if_needed()
    box = page.locator("#explorer svg").bounding_box()
    assert box is not None
    chart = [70 / 1100 * box["width"], (1100 - 24) / 1100 * box["width"]]
    x = box["x"] + chart[0] + SPIKE / (STEPS - 1) * (chart[1] - chart[0])
    page.mouse.move(x - 4, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(x + 4, box["y"] + 100)
    page.mouse.up()  # zoomed to the steps around it
    shown = ""
    for offset in range(0, int(chart[1] - chart[0]), 12):
        page.mouse.move(box["x"] + chart[0] + offset, box["y"] + 100)
        shown = page.inner_text("#explorer output")
        if "77" in shown.split():
            break
    assert re.search(rf"step {SPIKE + 1}\b.* 77|77 \(at step {SPIKE + 1}\)", shown), shown


def test_a_comparison_of_short_runs_draws_its_chart(open_page: Callable[..., Watched], tmp_path: Path) -> None:
    runs = [make_run_dir(tmp_path, name, kind=kind, steps=14, planned=14) for name, kind in (("one", "entropic"), ("two", "none"))]
    page = open_page().page
    page.goto(write_comparison(runs[0], runs[1:]).as_uri())
    page.select_option("#explorer select", "reward/mean")
    assert page.locator("#explorer path").count() == 2
    page.hover("#explorer svg")
    assert re.fullmatch(r"step \d+ +one: 0\.\d+ +two: 0\.\d+", page.inner_text("#explorer output"))
