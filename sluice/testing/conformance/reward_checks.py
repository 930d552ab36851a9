"""The contract of a reward server, check by check; `sluice conformance` prints the checks' names and docstrings."""

import asyncio
import math
from typing import Any

import grpc

from sluice.gold_answers import GARBAGE, gold_forms
from sluice.testing.conformance.reward_server import STOP, RewardServer
from sluice.testing.conformance.suite import NotApplicable, Suite, require
from sluice.testing.conformance.transport import CALL_TIMEOUT_S, check_health, check_oversized, check_refusal
from sluice.v1 import common_pb2, reward_pb2

SERVICE = "sluice.v1.RewardService"

GRADED = (common_pb2.REWARD_STATUS_OK, common_pb2.REWARD_STATUS_UNPARSED)
UNGRADED = (common_pb2.REWARD_STATUS_TIMEOUT, common_pb2.REWARD_STATUS_ERROR)

ANY_TEXT = (
    *("", " ", "\n\n", "\0", "a\0b", "\ufeff#", "\u202e42\u202c", "e\u0301" * 100, "😀👩\u200d👩\u200d👧", "١٢٣", "１２", "½"),
    *("\\boxed{" * 200, "(" * 1000, "#" * 1000, "<answer>", "Answer: " + "9" * 500, "1e999", "nan", "-inf", "{}", "%s%n"),
)  # fmt: skip
"""Texts of the kinds that models write and graders trip over."""

LONG_TEXT_BYTES = 4 << 20
"""Four such texts exceed the 4 MiB that gRPC libraries take by default."""

UNKNOWN_SOURCE = "sluice-conformance/no-such-source"

_CONCURRENT = 8
_SHORT_S = 0.05
_GROUP_TIMEOUT_S = 10.0
_GROUP_ITEMS = 64

SUITE: Suite[RewardServer] = Suite()


@SUITE.check
async def health_says_serving(server: RewardServer) -> None:
    """grpc.health.v1 says SERVING for "" and for sluice.v1.RewardService"""
    await check_health(server.channel, SERVICE)


@SUITE.check
async def graders_are_listed(server: RewardServer) -> None:
    """ListGraders names a grader and the data sources it serves"""
    listed = await server.stub.ListGraders(reward_pb2.ListGradersRequest(), timeout=CALL_TIMEOUT_S)
    require(bool(listed.graders), "no graders")
    for grader in listed.graders:
        require(bool(grader.name and grader.data_sources), f"a grader without name or data sources: {grader!r}")


@SUITE.check
async def a_gold_answer_is_right(server: RewardServer) -> None:
    """a completion that states the ground truth has status OK and acc 1"""
    await server.score(gold_forms(server.ground_truth))
    require(
        server.right is not None,
        f"none of the forms of {server.ground_truth!r} is right for data_source {server.data_source!r}; name a question "
        "and an answer that its grader takes with --data-source, --ground-truth and --answer",
    )


@SUITE.check
async def garbage_is_not_right(server: RewardServer) -> None:
    """an empty or a garbage completion never has acc 1"""
    for text, result in zip(GARBAGE, await server.score(GARBAGE), strict=True):
        require(result.acc != 1, f"{text!r} has acc 1")


@SUITE.check
async def results_stand_in_the_order_of_items(server: RewardServer) -> None:
    """results[i] belongs to items[i], one result an item"""
    pattern = (1, 0, 0, 1, 1, 1, 0, 1, 0)
    results = await server.score([server.known_right() if right else "?" for right in pattern])
    seen = tuple(int(result.acc == 1) for result in results)
    require(seen == pattern, f"right was {pattern}, graded was {seen}")


@SUITE.check
async def statuses_are_known(server: RewardServer) -> None:
    """every status is OK, UNPARSED, TIMEOUT or ERROR; the last two say why in detail"""
    for result in await server.score([*gold_forms(server.ground_truth), *GARBAGE]):
        require(result.status in GRADED + UNGRADED, f"status {result.status}")
        require(result.status in GRADED or bool(result.detail), "an ungraded result without detail")


@SUITE.check
async def scores_are_finite(server: RewardServer) -> None:
    """raw_score and shaped_reward of a graded sample are finite, acc is in [0, 1]"""
    for result in await server.score([*gold_forms(server.ground_truth), *GARBAGE, *ANY_TEXT]):
        if result.status in GRADED:
            scores = (result.raw_score, result.shaped_reward, result.overlong_penalty, *result.parts.values())
            require(all(map(math.isfinite, scores)), f"scores {scores}")
            require(0 <= result.acc <= 1, f"acc {result.acc}")


@SUITE.check
async def shaping_adds_up(server: RewardServer) -> None:
    """shaped_reward = raw_score + overlong_penalty, and overlong_penalty <= 0, for any length"""
    request = server.request([*gold_forms(server.ground_truth), *GARBAGE])
    for position, item in enumerate(request.items):
        item.response_tokens = 10**position
    for result in await server.send(request):
        if result.status in GRADED:
            require(result.overlong_penalty <= 0, f"overlong_penalty {result.overlong_penalty}")
            total = result.raw_score + result.overlong_penalty
            require(
                math.isclose(result.shaped_reward, total, abs_tol=1e-6),
                f"shaped_reward {result.shaped_reward}, raw_score + overlong_penalty {total}",
            )


@SUITE.check
async def a_given_score_is_kept(server: RewardServer) -> None:
    """the verdict of an environment (`given`) is raw_score and acc as it is, for any data source, and is only shaped"""
    request = server.request(GARBAGE[:2], data_source=UNKNOWN_SOURCE, ground_truth="", environment="conformance")
    for item, score in zip(request.items, (0.25, -2.0), strict=True):
        item.given.CopyFrom(common_pb2.EpisodeScore(score=score, acc=0.5, parts={"turns": 3}))
    for item, result in zip(request.items, await server.send(request), strict=True):
        require(result.status == common_pb2.REWARD_STATUS_OK, f"status {result.status}, {result.detail!r}")
        seen = (result.raw_score, result.acc, dict(result.parts))
        require(seen == (item.given.score, 0.5, {"turns": 3.0}), f"raw_score, acc and parts {seen}")
        total = result.raw_score + result.overlong_penalty
        require(math.isclose(result.shaped_reward, total, abs_tol=1e-6), f"shaped_reward {result.shaped_reward}")


@SUITE.check
async def the_grader_is_named(server: RewardServer) -> None:
    """every result names its grader and the grader's version"""
    for result in await server.score([*gold_forms(server.ground_truth), *GARBAGE]):
        require(bool(result.grader and result.grader_version), f"grader {result.grader!r} {result.grader_version!r}")


@SUITE.check
async def an_empty_group_has_no_results(server: RewardServer) -> None:
    """a group without items has no results, or is refused with INVALID_ARGUMENT"""
    try:
        await server.score([])
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
            raise


@SUITE.check
async def any_text_has_a_result(server: RewardServer) -> None:
    """control characters, combining marks, other scripts' digits, unclosed brackets: a known status each"""
    for text, result in zip(ANY_TEXT, await server.score(ANY_TEXT), strict=True):
        require(result.status in GRADED + UNGRADED, f"{text[:20]!r}: status {result.status}")


@SUITE.check
async def long_completions_are_graded(server: RewardServer) -> None:
    """a request of 16 MiB, four completions of 4 MiB, has four results"""
    long = "7" * (LONG_TEXT_BYTES - 1)
    await server.score([f"#{long}", f"{long}#", "é" * (LONG_TEXT_BYTES // 2), " " * LONG_TEXT_BYTES])


@SUITE.check
async def truncated_completions_are_graded(server: RewardServer) -> None:
    """finish_reason LENGTH is graded like any other"""
    request = server.request([*gold_forms(server.ground_truth), *GARBAGE])
    for item in request.items:
        item.finish_reason = common_pb2.FINISH_REASON_LENGTH
    for result in await server.send(request):
        require(result.status in GRADED, f"status {result.status}: {result.detail}")


@SUITE.check
async def the_same_request_has_the_same_results(server: RewardServer) -> None:
    """a group that is scored again, as after a lost answer, has the same results"""
    request = server.request([*gold_forms(server.ground_truth), *GARBAGE])
    first, again = await server.send(request), await server.send(request)
    for one, other in zip(first, again, strict=True):
        require(one == other or one.status in UNGRADED, f"first {one!r}, then {other!r}")


@SUITE.check
async def groups_at_once_do_not_mix(server: RewardServer) -> None:
    """8 groups sent at once each have their own results"""
    right = server.known_right()
    groups = [[right if index == group else "?" for index in range(_CONCURRENT)] for group in range(_CONCURRENT)]
    scored = await asyncio.gather(*(server.score(texts, group_id=f"g{n}") for n, texts in enumerate(groups)))
    for group, results in enumerate(scored):
        places = [index for index, result in enumerate(results) if result.acc == 1]
        require(places == [group], f"group {group} is right at {places}")


@SUITE.check
async def an_unknown_data_source_is_refused(server: RewardServer) -> None:
    """a data_source without a grader is INVALID_ARGUMENT, with a message"""
    if server.takes_any_source:
        raise NotApplicable('it lists "*": every data source is known')
    request = server.request(["42"], data_source=UNKNOWN_SOURCE)
    await check_refusal(server.send(request), grpc.StatusCode.INVALID_ARGUMENT, "an unknown data_source")


@SUITE.check
async def extra_info_that_is_no_json_is_refused(server: RewardServer) -> None:
    """extra_info_json that is no JSON object is INVALID_ARGUMENT, with a message"""
    for broken in ("{", "[]"):
        request = server.request(["42"], extra_info_json=broken)
        await check_refusal(server.send(request), grpc.StatusCode.INVALID_ARGUMENT, f"extra_info_json {broken}")


@SUITE.check
async def items_that_cannot_be_are_refused(server: RewardServer) -> None:
    """an unset finish_reason or a negative response_tokens is INVALID_ARGUMENT, with a message"""
    fields: dict[str, Any] = {"text": "42", "response_tokens": 10, "finish_reason": STOP}
    changes: tuple[dict[str, Any], ...] = (
        {"finish_reason": common_pb2.FINISH_REASON_UNSPECIFIED},
        {"response_tokens": -1},
    )
    for change in changes:
        request = server.request([], items=[reward_pb2.ScoreItem(**(fields | change))])
        await check_refusal(server.send(request), grpc.StatusCode.INVALID_ARGUMENT, f"an item with {change}")


@SUITE.check
async def a_group_is_answered_before_the_deadline(server: RewardServer) -> None:
    """64 completions are answered before a deadline of 10 s, with TIMEOUT for completions not graded by then"""
    await server.send(server.request(["#42 " * 1000] * _GROUP_ITEMS), timeout_s=_GROUP_TIMEOUT_S)


@SUITE.check
async def a_caller_that_leaves_holds_up_nobody(server: RewardServer) -> None:
    """after 8 callers whose deadline of 50 ms has passed, the next group is answered"""
    request = server.request(["#42 " * 1000] * _GROUP_ITEMS)
    left = [server.send(request, timeout_s=_SHORT_S) for _ in range(_CONCURRENT)]
    await asyncio.gather(
        *left, return_exceptions=True
    )  # most of these callers leave; an answer in time is fine as well
    await server.send(server.request(["?"]), timeout_s=_GROUP_TIMEOUT_S)


@SUITE.check
async def a_message_over_the_limit_is_refused(server: RewardServer) -> None:
    """a message over 256 MiB is RESOURCE_EXHAUSTED, and the next group is answered"""
    await check_oversized(server.channel, f"/{SERVICE}/Score")
    await server.score(["?"])
