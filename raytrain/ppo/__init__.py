"""The algorithm: one iteration of PPO, its state, learner and curriculum. Knows no Tune, no files."""
