"""The initial metadata of a WatchEvents stream, which says where the stream begins before the first event comes."""

PROCESS_KEY = "sluice-process"
"""The `process` of the events to come."""
SEQUENCE_KEY = "sluice-sequence"
"""The sequence number after which the stream begins."""
