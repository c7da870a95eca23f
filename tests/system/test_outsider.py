"""What the user's objects lack, and what goes wrong in them, names the setting that brought them."""

import pytest

from megatron_entropic.errors import ReportedError
from megatron_entropic.system.outsider import made_outside

PLACE = "trainer.trackers=mine.py:make"


class Whole:
    run_id = "known"

    def log(self, error: Exception | None = None) -> str:
        if error:
            raise error
        return "logged"


def test_a_whole_one_is_as_it_was() -> None:
    made = made_outside(PLACE, Whole, needs=("run_id", "log"))
    assert (made.run_id, made.log(), hasattr(made, "close")) == ("known", "logged", False)


def test_what_it_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=f"{PLACE}: what it makes, Whole, has no seek, no close"):
        made_outside(PLACE, Whole, needs=("log", "seek", "close"))
    with pytest.raises(ValueError, match=rf"{PLACE}: TypeError: .*got an unexpected|{PLACE}: TypeError: Whole\(\) takes no arguments"):
        made_outside(PLACE, Whole, 1, needs=())


def test_mistakes_in_its_methods_are_named_and_nothing_else_is() -> None:
    made = made_outside(PLACE, Whole, needs=("log",))
    with pytest.raises(ValueError, match=rf"{PLACE}: KeyError: 'reward', .*test_outsider.py:\d+"):
        made.log(KeyError("reward"))
    for error in (ReportedError("says it all"), OSError("disk full"), RuntimeError("gloo: connection closed by peer")):
        with pytest.raises(type(error), match=str(error)):
            made.log(error)
