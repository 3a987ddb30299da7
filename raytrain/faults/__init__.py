"""What can go wrong from outside and within: repeated failures, signals."""

from raytrain.faults.failures import (
    FailureMemory,
    RepeatedFailure,
    able_to_travel,
    may_retry,
    why_it_died,
)
from raytrain.faults.interrupts import InterruptedEarly, Interrupts

__all__ = [
    "FailureMemory",
    "InterruptedEarly",
    "Interrupts",
    "RepeatedFailure",
    "able_to_travel",
    "may_retry",
    "why_it_died",
]
