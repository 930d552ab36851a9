"""The coordinator's API from Python: `Client` for scripts and notebooks, `AsyncClient` for programs with an event loop.

    from sluice import Client

    with Client("127.0.0.1:18050") as client:
        print(client.status().step)

calls.py says once what each call asks and how its answer is read; the two clients only send the calls. Answers are the
messages of docs/api.md, some of them under shorter names. A failed call raises a `sluice.errors.SluiceError`, which has
`status`, `reason` and `fix`. docs/client.md is the user's page.
"""

from sluice.client.asynchronous import AsyncClient
from sluice.client.blocking import Client
from sluice.client.calls import Event, Group, Prompt, RunState, Status

__all__ = ["AsyncClient", "Client", "Event", "Group", "Prompt", "RunState", "Status"]
