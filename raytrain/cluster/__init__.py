"""The nodes of a run: whether they are fit, what takes them away, what failed. Knows no training.

nodes           lost and draining nodes         failures        errors and deaths in Ray's words
preflight       whether the nodes are fit       join_check      the same of nodes that join later
preemption      preemption notices of a cloud   restart_counts  how often a trial was restarted
placement       who waits for resources         package         what a job takes to a cluster

Nothing is imported here: `raytrain train` on one machine needs little of it.
"""
