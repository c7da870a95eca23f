"""The search: everything it calls fitting fits, nothing faster is left out of the first place, and knobs that help do."""

import pytest

from megatron_entropic.hf.layout import check_layout
from megatron_entropic.planning.layouts import changed, gpus_used, helpful_knobs, search
from tests.planning.sites import llama_70b, site_of


@pytest.mark.parametrize("gpus", [64, 128])
def test_every_layout_found_is_legal_fits_and_uses_all_gpus(gpus: int) -> None:
    cfg = llama_70b()
    site = site_of(cfg, gpus)
    fit, misfit = search(site, cfg)
    assert fit
    assert misfit
    for candidate in fit:
        found = candidate.cfg
        assert not check_layout(site.arch, found.parallel, found.batch, found.rollout)
        assert candidate.needed <= site.gpu_bytes
        assert gpus_used(found.parallel, found.rollout) == gpus
    times = [candidate.time.total for candidate in fit]
    assert times == sorted(times)
    full = site.evaluate(fit[0].cfg, all_stages=True)
    assert full.needed == fit[0].needed  # the first and the last stage are the fullest


def test_the_recipe_s_own_layout_is_among_them() -> None:
    cfg = llama_70b()
    site = site_of(cfg)
    own = site.evaluate(cfg)
    fit, _ = search(site, cfg)
    same = [candidate for candidate in fit if candidate.cfg.parallel == cfg.parallel and candidate.cfg.rollout.tensor == 8]
    assert own.fits == bool(same)
    assert fit[0].time.total <= own.time.total


def test_more_memory_admits_more_layouts() -> None:
    cfg = llama_70b()
    counts = [len(search(site_of(cfg, 32, gpu=gpu), cfg)[0]) for gpu in ("l40s", "h100", "h200")]
    assert counts == sorted(counts)
    assert counts[0] < counts[2]


def test_knobs_named_for_a_layout_that_does_not_fit_make_it_fit() -> None:
    cfg = llama_70b("batch.max_tokens_per_micro_batch=20480")
    site = site_of(cfg)
    candidate = site.evaluate(cfg)
    assert not candidate.fits
    knobs = helpful_knobs(candidate)
    assert knobs[0].startswith("model.recompute=selective (")
    assert any(knob.startswith("batch.max_tokens_per_micro_batch=8448 (") for knob in knobs)
    for knob in knobs:
        settings = [word for word in knob.split(" (")[0].split() if not word.startswith("parallel.sequence")]
        names = {name.replace(".", "__"): value if name.startswith("model") else int(value) for name, value in map(_pair, settings)}
        assert site.evaluate(changed(cfg, **names)).needed <= site.gpu_bytes


def _pair(setting: str) -> tuple[str, str]:
    name, value = setting.split("=")
    return name, value


def test_time_falls_with_faster_links_and_higher_utilisation() -> None:
    cfg = llama_70b()
    slow, fast = (site_of(cfg, assume=[f"mfu={mfu}"]).evaluate(cfg).time for mfu in (0.2, 0.6))
    assert fast.update < slow.update
    assert site_of(cfg, assume=["link_efficiency=0.1"]).evaluate(cfg).time.sync > fast.sync
    overlapped = site_of(cfg).evaluate(llama_70b("rollout.max_staleness=1")).time
    assert overlapped.total == max(overlapped.rollout, overlapped.update) + overlapped.sync
