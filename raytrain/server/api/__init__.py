"""The addresses of the API.

system       /healthz /metrics /api/system /api/nodes /api/events
runs         /api/runs and what is below one; /api/models /api/lineage /api/compare
checkpoints  /api/runs/{id}/checkpoints, with the commands that use each
control      starting, stopping, resuming, forking
work         verify, audit, prune, export, evaluate; /api/tasks
configs      /api/schema /api/configs /api/config/check
"""
