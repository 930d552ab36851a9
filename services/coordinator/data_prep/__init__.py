"""Published data sets as files that a run can read: fetched or found, copies of a prompt left out."""
