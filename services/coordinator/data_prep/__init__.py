"""Published data sets as files that a run can read: fetched or found on this machine, without copies of a prompt."""
