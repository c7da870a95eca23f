"""Plots and report.html: what is written, that it works for odd runs, and that untrusted text stays text."""

import base64
import hashlib
import json
import re
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from megatron_entropic.cli import main
from megatron_entropic.observability import explorer
from megatron_entropic.observability.comparison import runs_in, write_comparison
from megatron_entropic.observability.history import read_history, record_end, record_start
from megatron_entropic.observability.pages import format_duration, format_number
from megatron_entropic.observability.plotting.plots import compare_entropy, draw_comparison, write_plots
from megatron_entropic.observability.plotting.style import INK, SERIES
from megatron_entropic.observability.report import write_report
from megatron_entropic.observability.report_samples import pick_samples, visible
from megatron_entropic.observability.run_data import load_run
from tests.observability.synthetic_runs import MakeRun

EVIL = "<script>alert(1)</script></pre><img src=http://evil.example/x onerror=alert(1)>{{ 7*7 }} \u202eabc\x00 \ud800"


class Page(HTMLParser):
    """Tags, attributes, ids and the text of a page; fails on tags that do not close in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input"})

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)


def _assert_self_contained(page: Page) -> None:
    assert not {"link", "iframe", "img", "object"} & set(page.tags)
    assert [text for text in page.scripts if not text.startswith(("{", "// The chart"))] == []
    policy = next(value for name, value in page.attributes if name == "content" and value and "script-src" in value)
    for script in page.scripts:  # the page admits its own script, by its hash, and no other
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert (digest in policy) == script.startswith("// The chart")
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href"):
            assert value is not None
            assert value.startswith("#") or value.endswith("report.html"), "a run's own report, beside the page"
        assert "http" not in (value or "").replace("http-equiv", "") or name == "http-equiv", (name, value)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


@pytest.mark.slow
def test_report_of_a_finished_run(make_run: MakeRun) -> None:
    run_dir = make_run(steps=40)
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    page = Page(path)
    _assert_self_contained(page)
    assert page.tags.count("svg") == 12
    assert "complete: 40 of 40 steps" in page.text
    assert "Tracking error" in page.text
    assert "Control: alpha steered 68% of the steps, the probe took 30%; gains tuned from step 15." in page.text
    assert "mathdefault" not in page.text
    for wanted in ("What the controller knew", "band: who steers", "probing", "setpoint", "tuned from step 15", "predicted"):
        assert wanted in page.text
    for wanted in ("target_entropy", "Write 0 as a sum:", "Write 40 as a sum:", "Write 78 as a sum:", "megatron-core"):
        assert wanted in page.text
    assert not list(run_dir.rglob("*.tmp"))


def test_untrusted_text_stays_text(make_run: MakeRun) -> None:
    run_dir = make_run(steps=2, planned=40, text=EVIL)
    path = write_report(run_dir)
    page = Page(path)
    _assert_self_contained(page)
    assert (
        "<script>alert(1)</script></pre><img src=http://evil.example/x onerror=alert(1)>{{ 7*7 }} \\u202eabc\\u0000 \\ud800"
        in page.text
    )
    assert "stopped or still running: 2 of 40 steps" in page.text


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "panels"), [("none", 7), ("aent", 9), ("entropic+aent", 13)])
def test_report_of_other_kinds_of_control(make_run: MakeRun, kind: str, panels: int) -> None:
    page = Page(write_report(make_run(kind=kind, steps=5, planned=5)))
    assert page.tags.count("svg") == panels
    assert ("Tracking error" in page.text) == (kind == "entropic+aent")
    assert ("What the controller knew" in page.text) == (kind == "entropic+aent")


@pytest.mark.slow
def test_a_run_from_before_the_newer_fields_still_has_its_report(make_run: MakeRun) -> None:
    run_dir = make_run(steps=5, planned=5)
    kept = ("control/alpha", "control/target_entropy")
    path = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    old = [{name: value for name, value in line.items() if name in kept or not name.startswith("control/")} for line in lines]
    path.write_text("".join(json.dumps(line | {"control/coefficient": 0.0}) + "\n" for line in old))
    page = Page(write_report(run_dir))
    assert page.tags.count("svg") == 8
    assert "limit ±1" in page.text
    assert "who steers" not in page.text


def test_report_of_a_run_killed_before_its_first_step(make_run: MakeRun) -> None:
    run_dir = make_run(steps=0)
    (run_dir / "metrics.jsonl").unlink()
    page = Page(write_report(run_dir))
    assert "0 of 40 steps" in page.text
    assert "No step was logged yet" in page.text


def test_an_unreadable_rollout_file_is_named_in_the_page(make_run: MakeRun) -> None:
    run_dir = make_run(steps=3, planned=3)
    damaged = run_dir / "rollouts" / "step-000002.safetensors.zst"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    page = Page(write_report(run_dir))
    assert "step-000002.safetensors.zst" in page.text
    assert "Write 0 as a sum:" in page.text


@pytest.mark.slow
def test_a_comparison_is_a_page_of_its_own(make_run: MakeRun) -> None:
    """Runs go by their folders, whatever run.name says; the run's own report stays as it is."""
    first, second = make_run("held", steps=4, planned=4), make_run("free", kind="none", steps=4, planned=4)
    config = second / "config.yaml"
    config.write_text(config.read_text().replace("name: free", "name: held"))
    report = write_report(first)
    before = report.read_bytes()
    path = write_comparison(first, [second])
    assert path == first / "comparison.html"
    page = Page(path)
    _assert_self_contained(page)
    assert {"held", "free"} <= set(page.text.split())
    assert [run["label"] for run in json.loads(page.scripts[0])["runs"]] == ["held", "free"]
    assert (first / "plots" / "compare.png").is_file()
    assert report.read_bytes() == before


@pytest.mark.slow
def test_fifty_runs_are_a_table_of_what_differs(tmp_path: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    """One of them has no step yet, one a report; a folder of theirs and a file beside them may be given too."""
    (tmp_path / "swept").mkdir()
    for number in range(50):
        run = make_run(f"seed={number} #", steps=3 if number else 0)
        config = run / "config.yaml"
        config.write_text(config.read_text().replace("seed: 0", f"seed: {number}").replace("lr: 1.0e-06", f"lr: {1 + number % 2}e-06"))
        run.rename(tmp_path / "swept" / run.name)
    (tmp_path / "swept" / "notes.txt").write_text("mine")
    (tmp_path / "swept" / "seed=7 #" / "report.html").write_text("its own")
    runs, neither = runs_in([tmp_path / "swept", tmp_path / "swept" / "notes.txt"])
    assert (len(runs), neither) == (50, [tmp_path / "swept" / "notes.txt"])
    path = tmp_path / "swept" / "comparison.html"
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "swept")])
    assert capsys.readouterr().out == f"{path}\n"
    page = Page(path)
    _assert_self_contained(page)
    assert ("href", "seed%3D7%20%23/report.html") in page.attributes
    head = next(line for line in path.read_text().splitlines() if "<th>" in line)
    assert re.findall("<th>([^<]*)", head) == ["run", "optimizer.lr", "trainer.seed", "control"]
    assert len(json.loads(page.scripts[0])["runs"]) == 49
    assert path.stat().st_size < 2_000_000
    assert "svg" in page.tags


def test_long_runs_are_thinned_to_what_a_page_holds(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_run(make_run(steps=80))
    monkeypatch.setattr(explorer, "VALUES", 1)
    shown = json.loads(str(explorer.make_explorer({"a": run, "b": run}).data))["runs"][1]["columns"]["policy/entropy"]
    assert len(shown["at"]) == len(shown["values"]) < 40
    whole = run.column("policy/entropy")
    assert [min(shown["values"]), max(shown["values"])] == pytest.approx([whole.min(), whole.max()], rel=1e-4)


def test_targets_have_their_runs_colours_unless_they_are_one(make_run: MakeRun) -> None:
    runs = {"a": make_run("a", steps=14), "b": make_run("b", steps=14)}
    one = [line.get_color() for line in draw_comparison(runs).axes[0].lines if line.get_label() == "target"]
    assert one == [INK]
    metrics = runs["b"] / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"control/target_entropy": 0.9', '"control/target_entropy": 0.7'))
    lines = draw_comparison(runs).axes[0].lines
    targets = {
        float(line.get_ydata()[0]): line.get_color() for line in lines if len({*line.get_ydata()}) == 1 and len(line.get_ydata())
    }
    assert targets == {0.9: SERIES[0], 0.7: SERIES[1]}


@pytest.mark.slow
def test_the_page_says_when_how_long_by_what_and_what_ended_it(make_run: MakeRun) -> None:
    run_dir = make_run(steps=3)
    metrics = run_dir / "metrics.jsonl"
    added = {"optimizer/lr": 2e-4, "optimizer/skipped_updates": 1, "response/truncated": 0.25}
    metrics.write_text("".join(json.dumps(json.loads(line) | added) + "\n" for line in metrics.read_text().splitlines()))
    record_start(run_dir, ["train", "my recipe", "trainer.steps=40"])
    (run_dir / "logs").mkdir()
    soon = (datetime.now() + timedelta(seconds=1)).strftime("%Y-%m-%d %H:%M:%S")
    (run_dir / "logs" / "rank-1.log").write_text(
        f"2020-01-01 00:00:00,000 ERROR root: error: old\n{soon},500 ERROR root: error: lost peer\n"
    )
    (run_dir / "logs" / "rank-0.log").write_text(f"{soon},100 INFO x: y\n{soon},200 ERROR root: error: server 1 <died>\n")
    record_end(run_dir, 1)
    page = Page(write_report(run_dir))
    text = " ".join(page.text.split())
    for wanted in (
        "megatron-entropic train 'my recipe' trainer.steps=40",
        "ended early: server 1 <died>",
        "UTC on",
        "duration",
        "learning rate",
        "Skipped updates 3",
        "Responses cut at the limit 25 %",
    ):
        assert wanted in text, wanted


@pytest.mark.parametrize(
    ("code", "error"), [(0, None), (75, "asked to stop: saved"), (130, "ended by SIGINT"), (-9, "ended by SIGKILL"), (1, "exit code 1")]
)
def test_an_end_without_a_logged_error_is_told_by_its_code(tmp_path: Path, code: int, error: str | None) -> None:
    record_start(tmp_path, ["train", "quickstart"])
    (tmp_path / "history.jsonl").open("a").write('{"time": "torn')
    record_end(tmp_path, code)
    (start,) = read_history(tmp_path)
    assert (start.error is None) == (error is None)
    assert error is None or (start.error or "").startswith(error)


def test_durations_for_people() -> None:
    assert [format_duration(seconds) for seconds in (4.4, 65, 12_000, 187_200)] == ["4 s", "1 min 5 s", "3 h 20 min", "2 d 4 h"]


@pytest.mark.slow
def test_plots_are_written_at_a_readable_size(make_run: MakeRun) -> None:
    run_dir = make_run(steps=1)
    plots = write_plots(run_dir)
    always = {"entropy", "reward", "response_length", "logprob_gap", "times", "grad_norm", "overview"}
    assert set(plots) == always | {"alpha", "response", "plant", "authority"}
    for name, path in plots.items():
        assert path == run_dir / "plots" / f"{name}.png"
        with Image.open(path) as image:
            assert image.width >= 1600
            assert len(image.convert("RGB").getcolors(maxcolors=1 << 22) or ()) > 10  # not an empty page


def test_a_run_without_steps_cannot_be_plotted_or_compared(make_run: MakeRun, tmp_path: Path) -> None:
    run_dir = make_run(steps=0)
    with pytest.raises(ValueError, match="no step was logged"):
        write_plots(run_dir)
    with pytest.raises(ValueError, match=re.escape(f"empty ({run_dir})")):
        compare_entropy({"empty": run_dir}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="no runs given"):
        compare_entropy({}, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_compare_takes_any_label_and_different_lengths(make_run: MakeRun, tmp_path: Path) -> None:
    runs = {"$\\frac{1}{0}$ <b>": make_run("a", steps=14), "none": make_run("b", kind="none", steps=6)}
    out = compare_entropy(runs, tmp_path / "new" / "compare.png")
    with Image.open(out) as image:
        assert image.width >= 1600


def test_samples_show_both_ends_of_the_rewards(make_run: MakeRun) -> None:
    first, middle, last = pick_samples(make_run(steps=5) / "rollouts")
    assert (first.step, middle.step, last.step) == (0, 2, 4)
    assert [record.reward for record in first.groups[0].rollouts] == [0.0, 1.0, 1.0]
    assert first.groups[0].of == 4


def test_long_and_unprintable_text() -> None:
    assert visible("x" * 1600) == "x" * 1500 + " … (100 more characters)"
    assert visible("a\tb\nc\rd\u2066é漢\U0001f600") == "a\tb\nc\\u000dd\\u2066é漢\U0001f600"


def test_numbers_for_people() -> None:
    assert format_number(None) == "–"
    assert format_number(-0.00123, ".4f") == "−0.0012"


def test_labels_are_plain_text_whatever_a_run_is_called(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [make_run(name, steps=3) for name in ("_$x_1$ #2", 'a "q" <i> [1]')]
    for folder in folders:  # within one decade, where a log axis labels its minor ticks
        lines = [json.loads(line) | {"rollout/logprob_gap": 3e-7} for line in (folder / "metrics.jsonl").read_text().splitlines()]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pages = write_report(folders[0]).read_text(), write_comparison(folders[0], folders[1:]).read_text()
    assert all("mathdefault" not in page for page in pages)
    drawn = re.findall(r"<text[^>]*>([^<]*)</text>", pages[1])
    assert "./_$x_1$ #2" in drawn
    assert 'a "q" &lt;i&gt; [1]' in [text.replace("&quot;", '"') for text in drawn]


def test_runs_in_folders_of_one_name_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    folders = [tmp_path / "first" / "run", tmp_path / "second" / "run"]
    for number, folder in enumerate(folders):
        folder.parent.mkdir()
        make_run(f"made-{number}", steps=3).rename(folder)
    page = write_comparison(folders[0], folders[1:]).read_text()
    assert all(f"<td>{label}</td>" in page for label in ("first/run", "second/run"))
