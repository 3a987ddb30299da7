"""What a run's numbers depend on beside its config: threads, hash order, the machine's arithmetic.

Knows no run, no Ray and no environment: it describes a process, and computes with it.
"""
