"""One trial as Tune runs it: training, saving, and the directory that it owns. Prints nothing."""
