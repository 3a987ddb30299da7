"""What a run leaves to look at (records, episodes, events) and what a person sees meanwhile."""

from raytrain.reporting.compare import comparable, differences
from raytrain.reporting.console import ConsoleReporter, StopTotals
from raytrain.reporting.episodes import EpisodeHistory, FinishedEpisode, read_episodes
from raytrain.reporting.eventlog import EVENT_LOG, EventLog, LoggedEvent, read_events
from raytrain.reporting.mirror import RecordsMirror
from raytrain.reporting.records import RecordsError, TrialRecords

__all__ = [
    "EVENT_LOG",
    "ConsoleReporter",
    "EpisodeHistory",
    "EventLog",
    "FinishedEpisode",
    "LoggedEvent",
    "RecordsError",
    "RecordsMirror",
    "StopTotals",
    "TrialRecords",
    "comparable",
    "differences",
    "read_episodes",
    "read_events",
]
