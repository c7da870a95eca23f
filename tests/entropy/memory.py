"""Memory that a step allocates, to the byte, from the allocator's own record."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile


def peak_allocated(step: Callable[[], object]) -> int:
    """Most bytes that tensors allocated during `step` hold at once; results that `step` leaves alive count."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        left = step()
    assert recorded.profiler is not None
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del left
    return peak
