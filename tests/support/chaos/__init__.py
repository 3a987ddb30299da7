"""Chaos: an experiment of four trials trains while a seeded schedule of faults strikes it.

    schedule    what strikes and when, drawn from a seed
    campaign    carries a schedule out, and says what came before when something goes wrong
    local       on this machine: kills of all kinds of processes, damaged files
    nodes       on a cluster of raylets with addresses of their own and an object store: those, and
                nodes that die or are taken away, links that are cut, a store that stops

To run one again: `CHAOS_SEEDS=7 pytest tests/runs/test_chaos.py`, with the seed that a failure
has printed."""
