"""One iteration of PPO, its state, its learner and its curriculum. Knows no Tune and no files."""
