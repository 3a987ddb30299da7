"""What a run leaves to look at: results, episodes, events, metrics. Knows no algorithm."""

from raytrain.records.compare import differences
from raytrain.records.episodes import EpisodeHistory, read_episodes
from raytrain.records.event_log import EVENT_LOG, EventLog, node_notice, notices_of, read_events
from raytrain.records.remote_copy import RecordsMirror
from raytrain.records.row_files import recordable
from raytrain.records.writer import TrialRecords

__all__ = [
    "EVENT_LOG",
    "EpisodeHistory",
    "EventLog",
    "RecordsMirror",
    "TrialRecords",
    "differences",
    "node_notice",
    "notices_of",
    "read_episodes",
    "read_events",
    "recordable",
]
