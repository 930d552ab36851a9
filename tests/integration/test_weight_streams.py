"""Weights over gRPC: who gets bytes, that a stream resumes and ends, and that a rollout can be the source."""

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from sluice.errors import TransferError
from sluice.rpc.access import Role
from sluice.rpc.channel import open_blocking_channel
from sluice.rpc.credentials import Credentials, load_credentials
from sluice.testing import assert_eventually_blocking
from sluice.v1 import weight_pb2, weight_pb2_grpc
from sluice.weights.backends import Rendezvous
from sluice.weights.cargo import Cargo
from sluice.weights.fetching import FetchedGroup
from sluice.weights.links import Links, tell_first
from sluice.weights.payload import dense
from sluice.weights.receiver import Received, WeightReceiver
from sluice.weights.sender import OpenedTransfer, WeightSender
from tests.integration.weight_cases import random_snapshot
from tests.integration.weight_streams import serving
from tests.security_cases import make_folder

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

LIMIT_S = 5.0


@pytest.fixture(params=["certs", "tokens"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_folder(tmp_path, request.param)


@pytest.fixture
def sender() -> Iterator[WeightSender]:
    made = WeightSender(backend="grpc", host="127.0.0.1")
    yield made
    made.close()


def where(opened: OpenedTransfer, epoch: str, **changes: str) -> Rendezvous:
    facts = {"secret": opened.secret, "epoch": epoch, **changes}
    return Rendezvous(
        host="127.0.0.1",
        port=opened.store_port,
        rank=1,
        world_size=2,
        timeout_s=LIMIT_S,
        **facts,  # type: ignore[arg-type]
    )


def fetched(receiver: WeightReceiver, opened: OpenedTransfer, epoch: str, **changes: str) -> Received:
    if opened.new_epoch:
        receiver.join(where(opened, epoch, **changes), backend="grpc")
    receiver.begin(epoch=epoch, manifest=opened.manifest, payload=opened.payload)
    return receiver.result(timeout_s=30.0)


def test_the_receiver_that_the_coordinator_opened_for_gets_the_weights_and_nobody_else(
    sender: WeightSender, folder: Path
) -> None:
    of = {role: load_credentials(folder / role) for role in Role}
    sender.publish(random_snapshot(1))
    assert sender.links is not None
    with serving(sender.links, credentials=of[Role.LEARNER]) as server:
        opened = sender.open(rollout_id="r", epoch="e", timeout_s=LIMIT_S)
        assert opened.backend == "grpc"
        request = weight_pb2.FetchWeightsRequest(epoch="e", secret=opened.secret)

        def ends(credentials: Credentials, asked: weight_pb2.FetchWeightsRequest, *, shown: bool = True) -> str:
            """The status of a fetch, with credentials (of a role) or without, that must bring no byte."""
            address = f"127.0.0.1:{server.port}"
            channel = (
                open_blocking_channel(address, credentials=credentials, to=Role.LEARNER)
                if shown
                else grpc.insecure_channel(address)
            )
            with pytest.raises(grpc.RpcError) as caught:
                raise AssertionError(next(weight_pb2_grpc.WeightServiceStub(channel).FetchWeights(asked, timeout=10)))
            channel.close()
            assert isinstance(caught.value, grpc.Call)
            return f"{caught.value.code().name}: {caught.value.details()}"

        stranger = ends(of[Role.ROLLOUT], request, shown=False)
        assert stranger.startswith(("UNAUTHENTICATED", "UNAVAILABLE"))  # by the gate, or by TLS before it
        denied = ends(of[Role.COORDINATOR], request)  # not every role of the run
        assert denied.startswith("PERMISSION_DENIED: /sluice.v1.WeightService/FetchWeights: is for the role rollout")
        guesses = [
            weight_pb2.FetchWeightsRequest(epoch="e", secret="guessed"),
            weight_pb2.FetchWeightsRequest(epoch="e"),
            weight_pb2.FetchWeightsRequest(epoch="other", secret=opened.secret),
        ]
        answers = {ends(of[Role.ROLLOUT], guess) for guess in guesses}
        assert len(answers) == 1, "an answer tells which of the two was wrong"
        assert answers.pop().startswith(
            "PERMISSION_DENIED: fetch: no transfer is open under this epoch and this secret"
        )
        beyond = weight_pb2.FetchWeightsRequest(epoch="e", secret=opened.secret, first_bucket=65)
        assert ends(of[Role.ROLLOUT], beyond).startswith("INVALID_ARGUMENT: fetch: first_bucket must be from 0 to 64")

        receiver = WeightReceiver(credentials=of[Role.ROLLOUT])
        np.testing.assert_array_equal(fetched(receiver, opened, "e").buffer, random_snapshot(1).buffer)
        assert_eventually_blocking(lambda links=sender.links: not links.busy(), within_s=5.0)
        assert ends(of[Role.ROLLOUT], request).startswith("FAILED_PRECONDITION: epoch e: nothing was opened")
        sender.publish(random_snapshot(2))
        assert (
            fetched(receiver, sender.open(rollout_id="r", epoch="e", timeout_s=LIMIT_S), "e").manifest.version.number
            == 2
        )
        former = sender.open(rollout_id="r", epoch="f", timeout_s=LIMIT_S)
        sender.open(rollout_id="r", epoch="g", timeout_s=LIMIT_S)
        with pytest.raises(TransferError, match="PERMISSION_DENIED: fetch: no transfer is open"):
            fetched(receiver, former, "f")
        posing = WeightReceiver(credentials=of[Role.ROLLOUT])
        if (
            folder / "rollout" / "cert.pem"
        ).exists():  # a receiver that expects a rollout does not take the learner for one
            with pytest.raises(TransferError, match="UNAVAILABLE"):
                fetched(posing, sender.open(rollout_id="p", epoch="p", timeout_s=LIMIT_S), "p", source="rollout")
        for each in (receiver, posing):
            each.close()
    assert server.refused["unauthenticated"] + server.refused["denied"] >= 1


def test_what_was_interrupted_is_fetched_from_another_source_which_may_itself_still_wait(sender: WeightSender) -> None:
    snapshot, passed = random_snapshot(1), Counter[str]()

    def passing(epoch: str) -> None:
        passed[epoch] += 1
        if epoch == "e1" and passed[epoch] > 10:
            raise TransferError("this end gives up")

    sender.publish(snapshot)
    assert sender.links is not None
    payload = dense(snapshot.manifest, snapshot.buffer)
    relayed, relay = Cargo(payload, np.empty_like(snapshot.buffer)), Links(host="127.0.0.1", meets=False)
    receiver = WeightReceiver()
    with serving(sender.links, passing=passing), serving(relay, passing=passing):
        opened = sender.open(rollout_id="r", epoch="e1", timeout_s=LIMIT_S)
        with pytest.raises(TransferError, match="DATA_LOSS: this end gives up"):
            fetched(receiver, opened, "e1")
        link = relay.open(relayed, receiver_id="r", epoch="e2", backend="grpc", timeout_s=LIMIT_S)
        arriving = threading.Thread(target=_fill, args=(relayed, snapshot.buffer))
        receiver.join(link.rendezvous, backend="grpc")
        receiver.begin(epoch="e2", manifest=snapshot.manifest, payload=payload)
        arriving.start()
        assert receiver.result(timeout_s=30.0).digest == snapshot.manifest.digest
        arriving.join()
    assert passed["e2"] == 64 - 10
    receiver.close()
    relay.close()


def test_a_receiver_that_reads_nothing_and_a_source_that_says_nothing_free_the_other_end() -> None:
    large, links = random_snapshot(1, total_bytes=24 << 20), Links(host="127.0.0.1", meets=False)
    payload = dense(large.manifest, large.buffer)
    with serving(links):
        link = links.open(Cargo.whole(payload, large.buffer), receiver_id="r", epoch="e", backend="grpc", timeout_s=0.5)
        channel = grpc.insecure_channel(f"127.0.0.1:{link.rendezvous.port}")
        request = weight_pb2.FetchWeightsRequest(epoch="e", secret=link.rendezvous.secret)
        unread = weight_pb2_grpc.WeightServiceStub(channel).FetchWeights(request)
        next(unread)
        assert_eventually_blocking(lambda: not links.busy(), within_s=10.0)
        with pytest.raises(grpc.RpcError) as caught:
            list(unread)
        assert "the caller read nothing for 0.5 s" in str(caught.value)
        unread_too = weight_pb2_grpc.WeightServiceStub(channel).FetchWeights(request)
        next(unread_too)
        assert links.busy()
        channel.close()  # as a receiver that dies
        assert_eventually_blocking(lambda: not links.busy(), within_s=10.0)

        empty = Cargo(payload, np.empty(24 << 20, np.uint8))
        waiting = links.open(empty, receiver_id="s", epoch="s", backend="grpc", timeout_s=30.0)
        silent = dataclasses.replace(waiting.rendezvous, timeout_s=0.3)
        group = FetchedGroup(silent, credentials=load_credentials(None))
        started = time.monotonic()
        tell_first(group, 0)
        with pytest.raises(TransferError, match=r"epoch s: .* nothing of bucket 0 has arrived within 0\.3 s"):
            group.broadcast(np.empty(64 << 10, np.uint8))
        assert time.monotonic() - started < 20.0
        group.close()
        empty.fail(TransferError("given up"))
    links.close()


def _fill(cargo: Cargo, data: np.ndarray) -> None:
    for bucket in range(len(cargo.payload.bucket_digests)):
        cargo.accept(bucket, data[cargo.payload.bounds(bucket)])
