"""The worker's side of a run's gateway: takes episodes, and says how they ended."""

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import httpx
from pydantic import ValidationError

from sluice.agents.episode import Episode, Outcome
from sluice.errors import ConfigError, InvalidRequest, Overloaded, SluiceError, Unavailable

ERROR_CHARACTERS: Final = 500
"""Longest error that the gateway keeps."""
TRIES: Final = 3
"""How often the end of an episode is told to a gateway that cannot be reached."""


class RunOver(SluiceError):
    """The run has ended: there are no more episodes."""


class Gateway:
    """One run's gateway."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str],
        pause_s: float = 1.0,
        wait_s: float = 30.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`url` ends in /v1; `headers` show the run's credentials; `wait_s`: how long the gateway may keep a worker waiting;
        `pause_s` before a lost connection is tried again; `transport` in place of the network."""
        self.url, self.pause_s, self._wait_s, self._headers = url.rstrip("/"), pause_s, wait_s, dict(headers)
        limits = httpx.Limits(max_connections=None)  # one for each episode that is waited for
        self._http = httpx.AsyncClient(
            timeout=httpx.Timeout(30.0, read=wait_s + 30.0), limits=limits, trust_env=False, transport=transport
        )

    async def aclose(self) -> None:
        """Ends the connections."""
        await self._http.aclose()

    async def take(self, environment: str) -> Episode | None:
        """The next episode; None where none came. Raises RunOver, Unavailable, Overloaded, ConfigError."""
        asked: dict[str, object] = {"wait_s": self._wait_s}
        answer = await self._post(
            "/episodes", asked | ({"environment": environment} if environment else {}), self._headers
        )
        if answer.status_code == 204:
            return None
        if answer.status_code == 200:
            try:
                return Episode.model_validate_json(answer.content)
            except ValidationError as error:
                raise ConfigError(
                    f"{self.url}: answers no episode: {error.errors()[0]}; name a run's gateway"
                ) from None
        told = f"{self.url}: {_message(answer)}"
        if answer.status_code == 410:
            raise RunOver(told)
        if answer.status_code == 429:
            raise Overloaded(told)
        raise Unavailable(told) if answer.status_code >= 500 else ConfigError(told)

    async def finish(self, episode: Episode, ended: Outcome | str) -> None:
        """Says the score, or with a text why the episode failed. For an episode that is over by now the gateway's
        refusal is no error.

        Raises InvalidRequest for a score that is refused, Unavailable.
        """
        error = {"error": ended[:ERROR_CHARACTERS] or "failed"} if isinstance(ended, str) else None
        body = error or ended.tree(scores=episode.scores)  # type: ignore[union-attr]
        headers = {"Authorization": f"Bearer {episode.key}"}
        answer = await self._told(body, headers)
        if answer.status_code not in (200, 401, 410):
            raise InvalidRequest(_message(answer))

    async def _told(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> httpx.Response:
        for _ in range(TRIES - 1):
            try:
                return await self._post("/episodes/finish", body, headers)
            except Unavailable:
                await asyncio.sleep(self.pause_s)
        return await self._post("/episodes/finish", body, headers)

    async def _post(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> httpx.Response:
        try:
            return await self._http.post(self.url + path, json=dict(body), headers=dict(headers))
        except httpx.TransportError as error:
            raise Unavailable(f"{self.url} cannot be reached: {error or type(error).__name__}") from error
        except httpx.InvalidURL as error:
            raise ConfigError(f"--gateway: must be a URL, got {self.url!r}: {error}") from error


def _message(answer: httpx.Response) -> str:
    """The reason in an answer of a gateway, or of what else listens there."""
    try:
        return str(answer.json()["error"]["message"])[:ERROR_CHARACTERS]
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}, which is no answer of a gateway"
