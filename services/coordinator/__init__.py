"""The coordinator process: prompts, admission, fleet, conductor, queue, ledger, weight push, API."""
