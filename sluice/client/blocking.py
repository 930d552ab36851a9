"""The client for scripts and notebooks: no event loop. Who waits for what is as in asynchronous.py."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import grpc

from sluice.client import calls
from sluice.client.calls import Call, Event, Group, Prompt, RunState, Status
from sluice.client.local_launcher import LocalLauncher, started
from sluice.client.watching import PATIENCE_S, STREAM_TIMEOUT_S, Place
from sluice.rpc.channel import open_blocking_channel
from sluice.rpc.credentials import NO_CREDENTIALS, Credentials
from sluice.rpc.error_status import error_of
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import coordinator_pb2_grpc

T = TypeVar("T")


class Client:
    """A run's coordinator at `host:port`; a context manager. Any thread may use the client.

    `credentials` are an operator's, as `sluice.rpc.credentials.load_credentials(folder)` reads them. Every call has a
    time limit and raises SluiceError when the call fails. Calls that only read are sent again for up to 3 s while the
    coordinator cannot be reached; calls that change the run are sent once.
    """

    def __init__(self, address: str, *, credentials: Credentials = NO_CREDENTIALS) -> None:
        self.address = address
        options = (("grpc.service_config", calls.RETRIED_READS),)
        self._channel = open_blocking_channel(address, credentials=credentials, options=options)
        self._stub: Any = coordinator_pb2_grpc.CoordinatorServiceStub(self._channel)
        self._launcher: LocalLauncher | None = None

    @classmethod
    def start(
        cls,
        recipe: str | Path,
        *,
        overrides: Sequence[str] = (),
        run_dir: str | Path | None = None,
        credentials: Credentials = NO_CREDENTIALS,
    ) -> Self:
        """Starts `sluice up` with a recipe on this machine; returns when the run's coordinator answers.

        `overrides` are what `--set` takes ("run.seed=1"). A `run_dir` that exists is continued. The run ends with the
        client: with `close`, or when this process dies. Raises what keeps the run from starting, in the launcher's words.
        """
        launcher = LocalLauncher(recipe, overrides=overrides, run_dir=run_dir)
        client = cls(launcher.address, credentials=credentials)
        client._launcher = launcher
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channel; first stops a run that this client has started, in order and with a checkpoint."""
        self._channel.close()
        if self._launcher is not None:
            self._launcher.end()

    def wait(self, *, timeout_s: float | None = None) -> int:
        """Waits until a run that this client has started has ended with all files; returns `sluice up`'s exit code.

        Raises Expired after `timeout_s`, NotReady when this client has not started the run.
        """
        return started(self._launcher).wait(timeout_s=timeout_s)

    def _do(self, call: Call[T], **how: Any) -> T:
        try:
            answer = getattr(self._stub, call.method)(call.request, timeout=call.timeout_s, **how)
        except grpc.RpcError as error:
            failed: Any = error
            raise error_of(failed, peer=self.address) from error
        return call.read(answer)

    def watch(self, *, after_sequence: int = 0, process: str = "") -> Iterator[Event]:
        """Every event from now on until the run has ended; outlives restarts of the coordinator, without gaps.

        With the `sequence` and `process` of an event seen before, the iterator begins after that event. The coordinator
        keeps the newest 10,000 events. Raises Expired or Unavailable when the coordinator is gone for more than PATIENCE_S.
        """
        place = Place(after_sequence=after_sequence, process=process)
        while not place.run_has_ended:
            stream = self._stub.WatchEvents(place.request(), timeout=STREAM_TIMEOUT_S)
            try:
                place.begin(stream.initial_metadata())
                for event in stream:
                    place.move(event)
                    yield event
            except grpc.RpcError as error:
                failed: Any = error
                if not place.run_has_ended and not place.is_broken(failed):
                    raise error_of(failed, peer=self.address) from error
            finally:
                stream.cancel()
            if place.run_has_ended or self._has_ended():
                return

    def _has_ended(self) -> bool:
        """Whether the run has ended; waits for a coordinator that is being restarted."""
        status = self._do(calls.status(patience_s=PATIENCE_S), wait_for_ready=True)
        return RunState(status.state).final

    def status(self) -> Status:
        """Where the run stands: state, step, services, metrics, evaluations, who waits for whom."""
        return self._do(calls.status())

    def pause(self) -> RunState:
        """Stops admission; running groups finish and are trained. The pause outlives a restart of the coordinator."""
        return self._do(calls.pause())

    def resume(self) -> RunState:
        """Undoes pause and drain."""
        return self._do(calls.resume())

    def drain(self, *, timeout_s: float = calls.LONG_CALL_TIMEOUT_S) -> RunState:
        """Stops admission and returns when no group is in flight. Raises Expired after `timeout_s`."""
        return self._do(calls.drain(timeout_s))

    def stop(self, *, reason: str = "") -> RunState:
        """Ends the run after the current step."""
        return self._do(calls.stop(reason))

    def scale(self, role: str, replicas: int) -> int:
        """Has the launcher run `replicas` of "rollout" or "reward". Raises NotReady where there is no launcher, and
        with the launcher's reason where it can have fewer; the launcher then runs as many as it can have.
        """
        return self._do(calls.scale(role, replicas))

    def save_checkpoint(self) -> pb.SaveCheckpointResponse:
        """A checkpoint at the next step boundary: its `path` and `version`."""
        return self._do(calls.save_checkpoint())

    def evaluate(
        self, set_name: str = "", *, prompts: int = 0, n: int = 0, timeout_s: float = calls.LONG_CALL_TIMEOUT_S
    ) -> pb.Evaluation:
        """Accuracy on held-out prompts under one version; 0 takes the configured numbers.

        `set_name` is a set of eval.sets; empty for data.val_files, or for the first set of a run without val_files.
        """
        return self._do(calls.evaluate(prompts, n, set_name, timeout_s=timeout_s))

    def rollback(self, to: int, *, preview: bool = False) -> pb.RollbackResponse:
        """Goes back to the checkpoint of version `to`; with `preview` only says what would be given up."""
        return self._do(calls.rollback(to, preview=preview))

    def submit(self, prompts: Iterable[Prompt]) -> list[str]:
        """Adds prompts in front of the data set, all of them or none; returns the ids of the prompts."""
        return self._do(calls.submit(prompts))

    def groups(self, *, state: str = "", limit: int = 100) -> list[pb.GroupSummary]:
        """Live and recently ended groups, newest first; with `state` only groups under this ledger term ("trained")."""
        return self._do(calls.groups(state, limit))

    def group(self, group_id: str | int) -> Group:
        """One group, by id or by number in the order of admission: summary, ledger row, and samples while these are kept."""
        return self._do(calls.group(group_id))

    def ledger(self) -> pb.Ledger:
        """The conservation law, term by term."""
        return self._do(calls.ledger())

    def config(self) -> str:
        """The resolved configuration, YAML."""
        return self._do(calls.config())

    def weights_version(self) -> common.PolicyVersion:
        """The newest version that the learner has published: `lineage`, and `number`, the steps trained to make the version."""
        return self._do(calls.weights_version())
