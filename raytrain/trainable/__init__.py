"""What Tune runs: the algorithm, its env runners and learners, and the trial around them."""
