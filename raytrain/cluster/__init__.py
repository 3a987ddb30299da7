"""Work on a cluster: a run as a Ray job, and what is asked of every node before it trains there.

packing      what a run takes along              submitting   `raytrain submit`
jobs         a run's job on Ray's job server     following    its log
preflight    whether the nodes are fit           newcomers    nodes that join later

Nothing is imported here: `raytrain train` on one machine needs none of Ray's part of it.
"""
