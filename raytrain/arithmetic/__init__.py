"""What the bits of a run's numbers depend on."""
