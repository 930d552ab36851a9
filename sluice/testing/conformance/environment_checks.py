"""The contract of an environment server, check by check; `sluice conformance` prints the checks' names and docstrings."""

import asyncio
import contextlib
import json
import math
from typing import Any

import grpc

from sluice.testing.conformance.environment_server import EnvironmentServer
from sluice.testing.conformance.suite import NotApplicable, Suite, Violation, require
from sluice.testing.conformance.transport import CALL_TIMEOUT_S, check_health, check_oversized, check_refusal
from sluice.v1 import common_pb2, environment_pb2

SERVICE = "sluice.v1.EnvironmentService"
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND

_CONCURRENT = 8
_MOST_OPENED = 300
"""Episodes that are opened to find a server full; a server may have more places."""
_SHORT_S = 0.02
_SHORT_LEASE_S = 0.5
_AFTER_LEASE_S = 2.0
"""How long after a call the short lease must have ended."""
_LONG_TEXT_BYTES = 4 << 20

SUITE: Suite[EnvironmentServer] = Suite()


@SUITE.check
async def health_says_serving(server: EnvironmentServer) -> None:
    """grpc.health.v1 says SERVING for "" and for sluice.v1.EnvironmentService"""
    await check_health(server.channel, SERVICE)


@SUITE.check
async def environments_are_listed(server: EnvironmentServer) -> None:
    """ListEnvironments names environments, each once, with their versions"""
    request = environment_pb2.ListEnvironmentsRequest()
    listed = (await server.stub.ListEnvironments(request, timeout=CALL_TIMEOUT_S)).environments
    names = [one.name for one in listed]
    require(bool(names) and all(names) and len({*names}) == len(names), f"names {names}")
    require(all(one.version for one in listed), f"versions {[one.version for one in listed]}")
    require(server.info is not None, f"it lists {', '.join(names)}, not the environment under check")


@SUITE.check
async def an_episode_begins_with_messages_and_tools_of_known_form(server: EnvironmentServer) -> None:
    """Open has messages of the roles system, user, assistant and tool, or none for the row's; tools with a name each, once,
    and parameters that are a JSON object or empty; the version that ListEnvironments has"""
    request = server.opening()
    opened = await server.open(request)
    await server.close(request.episode_id)
    roles = {message.role for message in opened.messages}
    require(roles <= {"system", "user", "assistant", "tool"}, f"roles {sorted(roles)}")
    names = [tool.name for tool in opened.tools]
    require(all(names) and len({*names}) == len(names), f"names of tools {names}")
    for tool in opened.tools:
        require(_is_object(tool.parameters_json or "{}"), f"parameters of {tool.name}: {tool.parameters_json[:80]!r}")
    require(opened.version == server.known.version, f"version {opened.version!r}, listed is {server.known.version!r}")


@SUITE.check
async def the_same_seed_begins_the_same(server: EnvironmentServer) -> None:
    """two episodes with the same row and seed have the same messages and tools"""
    requests = [server.opening(seed=11), server.opening(seed=11)]
    first, other = await asyncio.gather(*map(server.open, requests))
    await asyncio.gather(*(server.close(request.episode_id) for request in requests))
    require(first == other, f"first {first!r}, then {other!r}")


@SUITE.check
async def a_repeated_open_has_the_same_answer(server: EnvironmentServer) -> None:
    """Open of a running episode, as after a lost answer, has the first answer, also after a turn"""
    request = server.opening()
    first = await server.open(request)
    require(await server.open(request) == first, "another answer before the first turn")
    if not (await server.step(request.episode_id)).done:
        require(await server.open(request) == first, "another answer after the first turn")
    await server.close(request.episode_id)


@SUITE.check
async def a_turn_is_answered(server: EnvironmentServer) -> None:
    """Step answers with messages of the roles tool and user, or with done"""
    answers = await server.whole_episode()
    for answer in answers:
        roles = {message.role for message in answer.messages}
        require(roles <= {"tool", "user"}, f"roles {sorted(roles)}")
        nothing = not answer.messages and not answer.done and answer is not answers[-1]
        require(not nothing, "neither messages nor done, and it was not the last turn")


@SUITE.check
async def a_repeated_step_has_the_same_answer(server: EnvironmentServer) -> None:
    """Step of the same turn, as after a lost answer, has the first answer, and the episode stands where it stood"""
    async with server.episode(seed=5) as one, server.episode(seed=5) as other:
        first = await server.step(one, "a")
        require(await server.step(one, "a") == first, "another answer to the same turn")
        await server.step(other, "a")
        if not first.done:
            followed, alone = await server.step(one, "b", turn=1), await server.step(other, "b", turn=1)
            require(followed == alone, f"turn 1 after a repeated turn 0: {followed!r}, otherwise {alone!r}")


@SUITE.check
async def a_score_comes_at_the_end_alone(server: EnvironmentServer) -> None:
    """an environment that scores gives a finite score, acc in [0, 1] and finite parts with done or the last turn, never
    before; one that does not score gives none"""
    *before, end = await server.whole_episode()
    require(not any(one.HasField("score") for one in before), "a score before the end")
    if not server.known.scores:
        require(not end.HasField("score"), "a score, ListEnvironments says that it does not score")
        return
    require(end.HasField("score"), "no score at the end, ListEnvironments says that it scores")
    numbers = (end.score.score, end.score.acc, *end.score.parts.values())
    require(all(map(math.isfinite, numbers)), f"score, acc and parts {numbers}")
    require(0 <= end.score.acc <= 1, f"acc {end.score.acc}")


@SUITE.check
async def any_text_is_answered(server: EnvironmentServer) -> None:
    """an empty turn, control characters, a turn of 4 MiB, a call of no tool and arguments that are no JSON are answered"""
    call = common_pb2.ToolCall(name="conformance-no-such-tool", arguments_json="{")
    wild = common_pb2.ChatMessage(role="assistant", content="", tool_calls=[call])
    for text in ("", "\0", "\u202e42\u202c 😀", "7" * _LONG_TEXT_BYTES):
        async with server.episode() as episode_id:
            await server.step(episode_id, text)
    async with server.episode() as episode_id:
        await server.step(episode_id, message=wild, finish_reason=common_pb2.FINISH_REASON_LENGTH)


@SUITE.check
async def a_closed_episode_is_gone(server: EnvironmentServer) -> None:
    """after Close, Step is NOT_FOUND"""
    request = server.opening()
    await server.open(request)
    await server.close(request.episode_id)
    await check_refusal(server.step(request.episode_id), NOT_FOUND, "Step after Close")


@SUITE.check
async def closing_what_is_not_open_is_no_error(server: EnvironmentServer) -> None:
    """Close of an unknown episode, or of one that is closed, is no error"""
    request = server.opening()
    await server.close(request.episode_id)
    await server.open(request)
    await server.close(request.episode_id)
    await server.close(request.episode_id)


@SUITE.check
async def a_step_of_an_unknown_episode_is_not_found(server: EnvironmentServer) -> None:
    """Step of an episode that was never opened is NOT_FOUND"""
    await check_refusal(server.step("conformance-unknown"), NOT_FOUND, "an unknown episode")


@SUITE.check
async def an_unknown_environment_is_refused(server: EnvironmentServer) -> None:
    """Open of an environment that is not listed is INVALID_ARGUMENT or NOT_FOUND, with a message"""
    request = server.opening(environment="sluice-conformance/no-such-environment")
    await check_refusal(server.open(request), INVALID, "an unknown environment", NOT_FOUND)


@SUITE.check
async def requests_that_cannot_be_served_are_refused(server: EnvironmentServer) -> None:
    """no episode_id, arguments_json that is no JSON object, a lease or turns that are not positive; a negative turn, a turn
    that is not the next, a role other than assistant, no finish_reason: INVALID_ARGUMENT (the next turn also
    FAILED_PRECONDITION), with a message"""
    taken: list[str] = []

    async def refused(what: str, call: Any, *others: grpc.StatusCode) -> None:
        try:
            await check_refusal(call, INVALID, what, *others)
        except Violation as violation:
            taken.append(str(violation))

    opens: tuple[dict[str, Any], ...] = (
        *({"episode_id": ""}, {"arguments_json": "{"}, {"arguments_json": "[]"}),
        *({"lease_s": 0.0}, {"lease_s": math.nan}, {"max_turns": 0}),
    )
    for change in opens:
        await refused(f"Open with {change}", server.open(server.opening(**change)))
    user = common_pb2.ChatMessage(role="user", content="?")
    steps: tuple[dict[str, Any], ...] = (
        *({"turn": -1}, {"message": user}, {"finish_reason": common_pb2.FINISH_REASON_UNSPECIFIED}),
    )
    async with server.episode() as episode_id:
        for change in steps:
            await refused(f"Step with {change}", server.step(episode_id, **change))
        await refused("turn 2 before turn 0", server.step(episode_id, turn=2), grpc.StatusCode.FAILED_PRECONDITION)
    require(not taken, "; ".join(taken))


@SUITE.check
async def episodes_at_once_do_not_mix(server: EnvironmentServer) -> None:
    """8 episodes with the same seed at once, their turns interleaved, have the answers of one alone"""
    alone = [[*one.messages] for one in await server.whole_episode(seed=3)]
    together = await asyncio.gather(*(server.whole_episode(seed=3) for _ in range(_CONCURRENT)))
    for answers in together:
        seen = [[*one.messages] for one in answers]
        require(seen == alone, f"{seen!r}, alone {alone!r}")


@SUITE.check
async def a_lease_ends_an_episode(server: EnvironmentServer) -> None:
    """2 s after the last call of an episode with a lease of 0.5 s, Step is NOT_FOUND"""
    request = server.opening(lease_s=_SHORT_LEASE_S)
    await server.open(request)
    await server.clock.sleep(_AFTER_LEASE_S)
    await check_refusal(server.step(request.episode_id), NOT_FOUND, "Step after the lease")


@SUITE.check
async def a_full_server_says_so(server: EnvironmentServer) -> None:
    """an Open beyond the server's places is RESOURCE_EXHAUSTED, with a message; a Close makes room for another"""
    opened: list[str] = []
    try:
        while len(opened) < _MOST_OPENED:
            request = server.opening()
            try:
                await server.open(request)
            except grpc.aio.AioRpcError as error:
                said = f"{error.code().name}: {error.details()}"
                require(error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and bool(error.details()), said)
                break
            opened.append(request.episode_id)
        else:
            raise NotApplicable(f"it has room for {_MOST_OPENED} episodes")
        require(bool(opened), "full with no episode open")
        await server.close(opened.pop())
        await server.open(request)
        opened.append(request.episode_id)
    finally:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await asyncio.gather(*map(server.close, opened))


@SUITE.check
async def a_caller_that_left_may_ask_again(server: EnvironmentServer) -> None:
    """a Step whose deadline of 20 ms may have passed is answered when it is sent again, as if it were the first"""
    async with server.episode(seed=9) as one, server.episode(seed=9) as other:
        with contextlib.suppress(grpc.aio.AioRpcError):
            await server.step(one, "7" * 1000, timeout_s=_SHORT_S)
        again, alone = await server.step(one, "7" * 1000), await server.step(other, "7" * 1000)
        require(again == alone, f"{again!r}, otherwise {alone!r}")


@SUITE.check
async def a_message_over_the_limit_is_refused(server: EnvironmentServer) -> None:
    """a message over 256 MiB is RESOURCE_EXHAUSTED, and the next episode begins"""
    await check_oversized(server.channel, f"/{SERVICE}/Step")
    async with server.episode():
        pass


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False
