"""Sampling fragments into arrays: `eligibility` says whether, `sampler` does it.

observations ─> `normalising` ─> `acting` (one forward pass for all) ─> `stepping` ─> ...
                       `fragments` ([T, N] columns) ─> episodes, rows of `finished` ones
"""
