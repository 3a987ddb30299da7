"""What a signal to the driver does before training begins, and while it goes on."""

from __future__ import annotations

import signal
import threading

import pytest

from raytrain.driver.signals import InterruptedEarly, Interrupts


def test_a_signal_before_training_ends_it_and_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts, pytest.raises(InterruptedEarly):
        signal.raise_signal(signal.SIGTERM)
    assert interrupts.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_during_training_a_signal_is_only_noted() -> None:
    with Interrupts() as interrupts, interrupts.deferred():
        signal.raise_signal(signal.SIGINT)
        assert interrupts.received is signal.SIGINT


def test_another_thread_takes_no_signals() -> None:
    before = signal.getsignal(signal.SIGINT)
    raised = []

    def enter() -> None:
        try:
            with Interrupts():
                pass
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert raised == []
    assert signal.getsignal(signal.SIGINT) is before
