"""Work on a cluster: a run as a Ray job, and what is checked before it trains there."""

from raytrain.cluster.packing import needs_files, pack, submitted

__all__ = ["needs_files", "pack", "submitted"]
