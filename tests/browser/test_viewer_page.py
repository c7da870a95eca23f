"""The viewer in Chromium, by clicks: search, samples beside each other, colours and their legend; hostile text stays text."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from playwright.sync_api import Page, expect
from tokenizers import Tokenizer

from megatron_entropic.control import Coefficients
from megatron_entropic.observability.viewer.server import Viewer
from megatron_entropic.rollout.recording import RolloutWriter
from megatron_entropic.rollout.token_recording import TokenWriter
from megatron_entropic.rollout.types import Rollout
from megatron_entropic.system.folder_lock import Fence
from megatron_entropic.system.shipped_files import models_folder
from megatron_entropic.tasks.task import Problem
from tests.browser.conftest import Watched
from tests.observability.synthetic_runs import make_run_dir, synthetic_rollouts
from tests.observability.test_step_metrics import stats

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.slow]
HOSTILE = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
ENTROPIES = (0.0, 0.5, 1.0, float("nan"))
"""Of the first tokens of each response."""
OpenPage = Callable[..., Watched]


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Viewer]:
    """Four steps; in the last one prompt 100 has hostile text everywhere, an empty response, and recorded tokens."""
    base = tmp_path_factory.mktemp("view")
    run_dir = make_run_dir(base, "a run #1", steps=3)
    config = (run_dir / "config.yaml").read_text().replace("models/tiny-decompose", str(models_folder() / "tiny-decompose"))
    (run_dir / "config.yaml").write_text(config)
    tokenizer = Tokenizer.from_file(str(models_folder() / "tiny-decompose" / "tokenizer.json"))
    ids = np.array(tokenizer.encode(HOSTILE).ids, dtype=np.int32)
    rollouts = [
        Rollout(100, sample, ids[:3], ids[:length], np.full(length, -0.5, dtype=np.float32), HOSTILE, "stop", 3, 3, "<b>server")
        for sample, length in enumerate((len(ids), 0, 4))
    ]
    RolloutWriter(run_dir / "rollouts").write(3, rollouts, {100: Problem(HOSTILE, {"answer": HOSTILE})}, [0.0, 0.5, 1.0])
    count = sum(len(rollout.response_ids) for rollout in rollouts)
    entropy = np.resize(np.array(ENTROPIES, dtype=np.float32), count)
    weight = np.linspace(-2, 2, count, dtype=np.float32)
    tokens = {"entropy": entropy, "log_prob": entropy - 0.5, "weight": weight, "plain_weight": weight / 2, "actuator": np.sign(weight)}
    update = replace(stats(Coefficients(alpha=0.25)), tokens=tokens, applied=True)
    TokenWriter(run_dir / "rollouts", Fence(run_dir, "")).write(3, rollouts, [update])
    with Viewer(run_dir, index_file=base / "index.sqlite", refresh_s=0.2) as viewer:
        yield viewer


def opened(open_page: OpenPage, viewer: Viewer, scheme: str = "light") -> Page:
    watched = open_page(scheme)
    watched.page.goto(viewer.url)
    expect(watched.page.locator("#progress")).to_have_text("27 rollouts of 4 steps")
    expect(watched.page.locator("#results li")).to_have_count(7)
    assert all(url.startswith((viewer.url, "data:")) for url in watched.asked)
    return watched.page


def test_search_and_filters(open_page: OpenPage, viewer: Viewer) -> None:
    page = opened(open_page, viewer)
    expect(page).to_have_title("a run #1 – rollouts")
    page.fill("#text", "Write 3 as")
    expect(page.locator("#results li")).to_have_count(1)
    expect(page.locator("#found")).to_have_text("4 samples of 1 prompt")
    page.click("text=clear")
    expect(page.locator("#results li")).to_have_count(7)
    page.fill("[name=step_from]", "2")
    page.fill("[name=step_to]", "2")
    page.fill("[name=reward_from]", "1")
    expect(page.locator("#found")).to_have_text("4 samples of 2 prompts")
    page.fill("[name=reward_from]", "many")
    expect(page.locator("#trouble")).to_have_text("reward_from=many: not a number", timeout=1000)
    page.fill("[name=reward_from]", "1")
    page.click("#results li >> nth=1")
    expect(page.locator("#prompt")).to_have_text("Write 3 as a sum:")
    expect(page.locator(".sample")).to_have_count(4)
    expect(page.locator(".sample.apart")).to_have_count(2)  # do not fit the filters


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_are_coloured_by_what_was_recorded(open_page: OpenPage, viewer: Viewer, scheme: str) -> None:
    page = opened(open_page, viewer, scheme)
    page.select_option("[name=order]", "newest")
    expect(page.locator("#results li >> nth=0")).to_contain_text("step 4")
    page.click("#results li >> nth=0")
    expect(page.locator("#place")).to_contain_text("step 4, prompt 100")
    expect(page.locator("#place")).to_contain_text("alpha 0.25")
    spans = page.locator(".sample >> nth=0").locator(".tokens span")
    expect(spans).to_have_count(len(HOSTILE))
    assert [colour_of(page, number) for number in (0, 1, 2)] == pytest.approx([0.0, 0.35, 0.7], abs=0.01)
    expect(spans.nth(3)).to_have_class("odd")  # NaN
    expect(page.locator("#high")).to_have_text("1")
    spans.nth(1).hover()
    expect(page.locator("#tip")).to_contain_text('"s" token 2')
    expect(page.locator("#tip .now")).to_have_text("entropy0.5")
    expect(page.locator("#tip")).to_contain_text("log-prob gap0.5")
    page.select_option("#field", "weight")
    expect(page.locator("#low")).to_have_text("−2")
    assert "213, 94, 0" in style_of(page, 0) or "240, 116, 40" in style_of(page, 0), "less likely is warm"
    page.select_option("#field", "")
    assert colour_of(page, 2) == 0.0
    expect(page.locator("#scale")).to_be_hidden()


def style_of(page: Page, number: int) -> str:
    return str(page.evaluate(f"getComputedStyle(document.querySelectorAll('.tokens span')[{number}]).backgroundColor"))


def colour_of(page: Page, number: int) -> float:
    """How opaque the colour of a token is."""
    parts = style_of(page, number).strip("rgba()").split(",")
    return round(float(parts[3]), 3) if len(parts) == 4 else 1.0


def test_hostile_text_stays_text(open_page: OpenPage, viewer: Viewer) -> None:
    page = opened(open_page, viewer)
    page.fill("#text", "<script>")
    expect(page.locator("#results li p")).to_have_text([HOSTILE])
    page.click("#results li")
    expect(page.locator("#prompt")).to_have_text(HOSTILE)
    page.click("summary")
    expect(page.locator("#problem")).to_have_text(f"answer: {HOSTILE}")
    expect(page.locator(".tokens >> nth=0")).to_have_text(HOSTILE)
    expect(page.locator(".tokens >> nth=1")).to_have_text("(empty response)")
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    expect(page).to_have_title("a run #1 – rollouts")


def test_a_run_in_progress_grows_on_the_page(open_page: OpenPage, viewer: Viewer) -> None:
    page = opened(open_page, viewer)
    folder = viewer.run_dir / "rollouts"
    (folder / "step-000005.safetensors.zst").write_bytes(b"half a file")
    written = RolloutWriter(folder).write(4, *synthetic_rollouts(4))
    expect(page.locator("#progress")).to_have_text("35 rollouts of 6 steps")
    expect(page.locator("#trouble")).to_contain_text("1 step cannot be read: ")
    for path in (written, folder / "step-000005.safetensors.zst"):
        path.unlink()
    expect(page.locator("#progress")).to_have_text("27 rollouts of 4 steps")
