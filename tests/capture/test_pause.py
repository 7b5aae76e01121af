"""The pause of the cycle collector."""

from __future__ import annotations

import gc

import pytest

from secateur.capture.pause import collector_paused


@collector_paused()
def fail_with_the_state_of_the_collector() -> None:
    raise ValueError(f"collector on: {gc.isenabled()}")


def test_the_collector_rests_inside_and_runs_again_after_an_error() -> None:
    assert gc.isenabled()
    with pytest.raises(ValueError, match="collector on: False"):
        fail_with_the_state_of_the_collector()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    finally:
        gc.enable()
