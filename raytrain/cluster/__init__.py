"""The nodes that a run has: whether they are fit, what takes them away, and what died. Knows no training.

nodes           lost nodes, and those that leave      failures        errors and deaths, as Ray delivers them
preflight       whether the nodes are fit             join_check      the same of nodes that join later
preemption      notices that a node will be taken     restart_counts  how often a trial was started again
placement       who waits for resources               package         what a run takes along as a job

Nothing is imported here: `raytrain train` on one machine needs little of it.
"""
