"""Sampling fragments into arrays: by `sampler`, where `eligibility` allows it.

observations ─> `mean_std_filter` ─> `forward` (one pass for all) ─> `vector_step` ─> ...
                       `fragments` ([T, N] columns) ─> episodes, `episode_rows` of those that ended
"""
