"""What WatchEvents says of a stream before its first event, in the initial metadata: where the stream begins."""

PROCESS_KEY = "sluice-process"
"""The `process` of the events to come."""
SEQUENCE_KEY = "sluice-sequence"
"""The number that they come after."""
