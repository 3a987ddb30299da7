"""What the commands do. Print nothing, and leave tensors to the trial."""
