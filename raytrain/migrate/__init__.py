"""Programs for RLlib and Ray Tune: their settings as a config, and Tune's results from files."""
