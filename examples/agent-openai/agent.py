"""An agent that brings its own loop, with the `openai` client: it asks again where its first answer is wrong.

In the recipe: `environments: {mine: {environment: agent}}` and `data: {environment: mine}`. Then, beside `sluice up`:

    python examples/agent-openai/agent.py http://127.0.0.1:18080/v1
"""

import sys
import threading
import time

import httpx
from openai import APIStatusError, BadRequestError, OpenAI


def play(client: OpenAI, episode: dict) -> float:
    """The loop: anything may happen here. Returns the score."""
    chat = episode["messages"]
    for tries_before in range(2):
        try:
            answer = client.chat.completions.create(model=episode["model"], messages=chat).choices[0].message
        except BadRequestError as error:
            if error.code != "context_length_exceeded":
                raise
            break  # the budgets leave no room for another turn: the episode ends as it is
        if episode["ground_truth"] in (answer.content or ""):
            return 1.0 - 0.5 * tries_before
        chat = [*chat, answer, {"role": "user", "content": "That is wrong. Try again."}]
    return 0.0


def work(url: str) -> None:
    """Takes episodes until the run has ended."""
    while True:
        try:
            took = httpx.post(f"{url}/episodes", json={"wait_s": 30}, timeout=60)
        except httpx.TransportError:  # the coordinator is not here yet, or starts again
            time.sleep(1)
            continue
        if took.status_code == 410:
            return
        if took.status_code != 200:  # 204: no episode yet
            took.raise_for_status()
            continue
        episode = took.json()
        client = OpenAI(base_url=url, api_key=episode["key"])
        try:
            client.post("/episodes/finish", body={"score": play(client, episode)}, cast_to=object)
        except APIStatusError as error:
            if error.status_code not in (401, 410):  # those say that the episode is over and begins again elsewhere
                client.post("/episodes/finish", body={"error": str(error)}, cast_to=object)


if __name__ == "__main__":
    agents = [threading.Thread(target=work, args=(sys.argv[1],)) for _ in range(32)]
    for agent in agents:
        agent.start()
