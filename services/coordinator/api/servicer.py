"""CoordinatorService: decodes a request, calls one of the run's parts, encodes the answer. For scripts and for services."""

import asyncio
import json
from collections.abc import AsyncIterator
from functools import partial

import grpc
import structlog

from services.coordinator.api import scale_orders, status_wire
from services.coordinator.api.disk_patience import DiskPatience
from services.coordinator.api.group_listing import find_payload, find_row, group_lines, line_of
from services.coordinator.api.registrations import (
    LARGEST_CAPACITY,
    check_may_join,
    check_registration,
    environments_from,
    gpus_from,
    outcome_from,
    places_from,
    serves_own_weights,
)
from services.coordinator.api.run_parts import RunParts
from services.coordinator.state.member import Member, Role, State
from services.coordinator.storage.run_files import BatchFile
from services.coordinator.wire.clients import as_sluice_errors
from services.coordinator.wire.messages import statement_from
from services.coordinator.wire.token_figures import figures_from
from sluice import PROTOCOL_VERSION
from sluice.addresses import host_of
from sluice.config.load import dump_config
from sluice.errors import DiskFull, Expired, InvalidRequest, NotReady
from sluice.policy_version import OWN_WEIGHTS
from sluice.rpc import access
from sluice.rpc.event_stream import PROCESS_KEY, SEQUENCE_KEY
from sluice.rpc.gate import caller, name_of
from sluice.rpc.policy_versions import version_from_proto
from sluice.rpc.requests import duration_s, line, name
from sluice.v1 import coordinator_pb2 as pb
from sluice.v1 import coordinator_pb2_grpc, learner_pb2

log = structlog.get_logger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["CoordinatorService"].full_name

LONGEST_POLL_S = 30.0
LONGEST_PATH = 4096
"""Linux's PATH_MAX."""
MOST_SAMPLES_A_PROMPT = 4096
"""Limit of `n` of an evaluation, which is a rollout's limit of one call: without it two billion samples would be prepared
before the rollout refuses the call."""

_ROLE = {
    pb.SERVICE_ROLE_ROLLOUT: Role.ROLLOUT,
    pb.SERVICE_ROLE_REWARD: Role.REWARD,
    pb.SERVICE_ROLE_ENVIRONMENT: Role.ENVIRONMENT,
    pb.SERVICE_ROLE_LEARNER: Role.LEARNER,
}


def _answer_s(context: grpc.aio.ServicerContext) -> float:
    """ANSWER_S, or what the caller's own limit has room for."""
    left_s = context.time_remaining()
    return scale_orders.ANSWER_S if left_s is None else max(0.0, min(scale_orders.ANSWER_S, left_s / 2))


class CoordinatorServicer(coordinator_pb2_grpc.CoordinatorServiceServicer):
    """The API over the parts of one run."""

    def __init__(self, parts: RunParts) -> None:
        self._parts = parts
        self._patience = DiskPatience(parts.run.disk)

    # --- for people ----------------------------------------------------------------------------------------------

    async def GetStatus(self, request: pb.GetStatusRequest, context: grpc.aio.ServicerContext) -> pb.GetStatusResponse:
        return await status_wire.status(self._parts)

    async def WatchEvents(
        self, request: pb.WatchEventsRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.WatchEventsResponse]:
        parts = self._parts
        parts.launchers += request.launcher
        begin = parts.run.events.begin(after=request.after_sequence, process=request.process)
        events = parts.run.events.watch(
            after=request.after_sequence, process=request.process, over=lambda: parts.run.progress.state.final
        )
        try:
            # So that a caller can go on from here even if the connection breaks before the first event.
            await context.send_initial_metadata(((PROCESS_KEY, parts.run.events.process), (SEQUENCE_KEY, str(begin))))
            async for event in events:
                yield pb.WatchEventsResponse(
                    sequence=event.sequence,
                    time_s=event.time_s,
                    kind=event.kind,
                    message=event.message,
                    values=event.values,
                    labels=event.labels,
                    process=parts.run.events.process,
                )
        finally:
            parts.launchers -= request.launcher

    async def Pause(self, request: pb.PauseRequest, context: grpc.aio.ServicerContext) -> pb.PauseResponse:
        return pb.PauseResponse(state=await self._set_admission("paused"))

    async def Resume(self, request: pb.ResumeRequest, context: grpc.aio.ServicerContext) -> pb.ResumeResponse:
        return pb.ResumeResponse(state=await self._set_admission("open"))

    async def Drain(self, request: pb.DrainRequest, context: grpc.aio.ServicerContext) -> pb.DrainResponse:
        limit = duration_s(request.timeout_s, field="drain: timeout_s", may_be_0=True) or 600.0
        state, board = await self._set_admission("draining"), self._parts.run.board
        try:
            async with asyncio.timeout(limit):
                while board.open:
                    await board.changed.wait()
        except TimeoutError as error:
            raise Expired(
                f"drain: {len(board.open)} groups are still in flight after {limit:.0f} s",
                fix="drain again with a longer timeout; admission stays closed meanwhile",
            ) from error
        return pb.DrainResponse(state=state)

    async def Stop(self, request: pb.StopRequest, context: grpc.aio.ServicerContext) -> pb.StopResponse:
        reason = request.reason or "stopped on request"
        await self._patience.unless_full("Stop", lambda: self._parts.lifecycle.stop(reason))
        return pb.StopResponse(state=status_wire.run_state(self._parts.run.progress))

    async def Scale(self, request: pb.ScaleRequest, context: grpc.aio.ServicerContext) -> pb.ScaleResponse:
        role = _ROLE.get(request.role)
        if role not in (Role.ROLLOUT, Role.REWARD) or request.replicas < 0:
            raise InvalidRequest(
                f"scale: must be a number >= 0 of rollouts or rewards, got {request.replicas} of "
                f"{pb.ServiceRole.Name(request.role) if request.role in pb.ServiceRole.values() else request.role}",
                fix="name SERVICE_ROLE_ROLLOUT or SERVICE_ROLE_REWARD and how many",
            )
        if not self._parts.launchers:
            raise NotReady(
                "scale: no launcher is attached to this run",
                fix="start or end services yourself; with Docker Compose, `docker compose up -d --no-deps --no-recreate "
                f"--scale {role.value}={request.replicas} {role.value}`",
            )
        await self._note_scale(role, request.replicas)
        run, orders = self._parts.run, self._parts.scale_orders
        with orders.order() as order:
            run.events.emit(
                "scale",
                f"{request.replicas} {role.value} replicas asked for",
                values={"replicas": float(request.replicas)},
                labels={"role": role.value, "order": order},
            )
            done = await orders.outcome(
                order, role=role.value, replicas=request.replicas, places=run.places, within_s=_answer_s(context)
            )
        if done is not None and done.refused:
            await self._note_scale(role, done.replicas)
            raise NotReady(f"scale: {done.replicas} of {request.replicas} {role.value} replicas: {done.refused}")
        return pb.ScaleResponse(role=request.role, replicas=request.replicas)

    async def _note_scale(self, role: Role, replicas: int) -> None:
        self._parts.run.progress.scale[role.value] = replicas
        await self._patience.unless_full("Scale", self._parts.lifecycle.save)

    async def ReportPlaces(
        self, request: pb.ReportPlacesRequest, context: grpc.aio.ServicerContext
    ) -> pb.ReportPlacesResponse:
        places, outcome = places_from(request), outcome_from(request)
        self._parts.run.places.report(places)
        if outcome is not None:
            self._parts.scale_orders.carried_out(outcome)
        return pb.ReportPlacesResponse()

    async def SaveCheckpoint(
        self, request: pb.SaveCheckpointRequest, context: grpc.aio.ServicerContext
    ) -> pb.SaveCheckpointResponse:
        learner = self._parts.run.fleet.learner
        if learner is None:
            raise NotReady("checkpoint: no learner is registered", fix="wait until `sluice status` shows one")
        left_s = context.time_remaining()
        limit_s = 300.0 if left_s is None else left_s
        with as_sluice_errors(learner):
            saved = await self._parts.clients.learner(learner).SaveCheckpoint(
                learner_pb2.LearnerServiceSaveCheckpointRequest(), timeout=limit_s
            )
        return pb.SaveCheckpointResponse(path=saved.path, version=saved.version)

    async def Evaluate(self, request: pb.EvaluateRequest, context: grpc.aio.ServicerContext) -> pb.EvaluateResponse:
        if request.prompts < 0 or not 0 <= request.n <= MOST_SAMPLES_A_PROMPT:
            raise InvalidRequest(
                f"evaluate: prompts must be >= 0 and n 0 to {MOST_SAMPLES_A_PROMPT}, got {request.prompts} and {request.n}",
                fix="0 takes the configured number",
            )
        evaluated = await self._parts.evaluator.evaluate(request.set, prompts=request.prompts, n=request.n)
        await self._parts.lifecycle.record_evaluation(evaluated, full=False)
        return pb.EvaluateResponse(evaluation=status_wire.evaluation(evaluated.result))

    async def SubmitPrompts(
        self, request: pb.SubmitPromptsRequest, context: grpc.aio.ServicerContext
    ) -> pb.SubmitPromptsResponse:
        ids = await self._parts.prompts.submit([status_wire.submitted(prompt) for prompt in request.prompts])
        return pb.SubmitPromptsResponse(prompt_ids=ids)

    async def ListGroups(
        self, request: pb.ListGroupsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListGroupsResponse:
        if request.limit < 0:
            raise InvalidRequest(f"groups: limit must be >= 0, got {request.limit}", fix="0 takes 100")
        found = [line for line in group_lines(self._parts) if not request.state or line.state == request.state]
        return pb.ListGroupsResponse(groups=[status_wire.summary(line) for line in found[: request.limit or 100]])

    async def GetGroup(self, request: pb.GetGroupRequest, context: grpc.aio.ServicerContext) -> pb.GetGroupResponse:
        row = await find_row(self._parts, request.group_id)
        line = line_of(row)
        return pb.GetGroupResponse(
            summary=status_wire.summary(line),
            group=await find_payload(self._parts, line),
            row_json=json.dumps(row, allow_nan=False),
        )

    async def GetLedger(self, request: pb.GetLedgerRequest, context: grpc.aio.ServicerContext) -> pb.GetLedgerResponse:
        return pb.GetLedgerResponse(ledger=await status_wire.ledger(self._parts))

    async def Rollback(self, request: pb.RollbackRequest, context: grpc.aio.ServicerContext) -> pb.RollbackResponse:
        rollbacks = self._parts.rollbacks
        asked = partial(rollbacks.preview if request.preview else rollbacks.request, request.to)
        account = await self._patience.unless_full("Rollback", asked)
        return status_wire.rollback(account)

    async def GetConfig(self, request: pb.GetConfigRequest, context: grpc.aio.ServicerContext) -> pb.GetConfigResponse:
        if (role := caller()) not in (None, access.Role.OPERATOR):
            self._parts.run.fleet.expect(name_of(role, context), now_s=self._parts.run.clock.now())
        return pb.GetConfigResponse(
            yaml=dump_config(self._parts.run.config),
            run_dir=str(self._parts.records.files.run_dir.absolute()),
            unique_name=self._parts.unique_name,
        )

    # --- for services --------------------------------------------------------------------------------------------

    async def Register(self, request: pb.RegisterRequest, context: grpc.aio.ServicerContext) -> pb.RegisterResponse:
        call = f"Register {request.service_id} {request.incarnation}"
        return await self._patience.unless_full(call, lambda: self._register(request, context))

    async def _register(self, request: pb.RegisterRequest, context: grpc.aio.ServicerContext) -> pb.RegisterResponse:
        parts, run, role = self._parts, self._parts.run, _ROLE.get(request.role)
        if role is None or not request.address or not request.incarnation:
            raise InvalidRequest("register: role, address and incarnation must be set", fix="set all three")
        check_registration(request)
        if request.protocol_version != PROTOCOL_VERSION:
            raise NotReady(
                f"register: {role.value} {request.service_id} speaks protocol {request.protocol_version}, this coordinator "
                f"{PROTOCOL_VERSION}",
                fix="run one version of sluice everywhere",
            )
        check_may_join(caller_role := caller(), role)
        environments = environments_from(request)
        self._check_model(request, role)
        own_weights = role is Role.ROLLOUT and serves_own_weights(request, wanted=parts.evaluates_only)
        if role is Role.LEARNER:
            await parts.learner.hear(statement_from(request))
        member = Member(
            service_id=request.service_id,
            role=role,
            address=request.address,
            incarnation=request.incarnation,
            capacity=min(max(1, request.capacity), LARGEST_CAPACITY),
            last_beat_s=run.clock.now(),
            metrics_address=request.metrics_address,
            engine=request.engine,
            device=request.device,
            host=request.host or host_of(request.address),
            memory=request.memory,
            gpus=gpus_from(request),
            environments=environments,
            shown_role="" if caller_role is None else caller_role.value,
            own_weights=own_weights,
            version=OWN_WEIGHTS if own_weights else None,
        )
        replaced = run.fleet.register(member)
        run.fleet.has_come(name_of(caller_role, context))
        fence = await parts.learner.take(member, version_from_proto(request.version)) if role is Role.LEARNER else 0
        run.events.emit(
            "service_registered",
            f"{member.service_id} at {member.address} ({request.engine or role.value})"
            + (", replacing its former process" if replaced and replaced.incarnation != member.incarnation else ""),
            labels={"service_id": member.service_id, "role": role.value},
        )
        if member.state is State.READY:
            run.events.emit("service_ready", f"{member.service_id} is ready", labels={"service_id": member.service_id})
        return pb.RegisterResponse(
            service_id=member.service_id,
            run_id=run.run_id,
            run_dir=str(parts.records.files.run_dir),
            config_yaml=dump_config(run.config),
            heartbeat_interval_s=run.config.coordinator.heartbeat_interval_s,
            fence=fence,
        )

    def _check_model(self, request: pb.RegisterRequest, role: Role) -> None:
        if role.needs_no_weights:
            return
        ours = self._parts.identity
        for what, theirs, own in (
            ("model", request.model_hash, ours.model_hash),
            ("tokenizer", request.tokenizer_hash, ours.tokenizer_hash),
        ):
            if theirs != own:
                raise NotReady(
                    f"register: {role.value} {request.service_id} has another {what} (hash {theirs[:12]}) than this run "
                    f"({own[:12]})",
                    fix="give both the same model.path",
                )
        longest = self._parts.run.config.longest_sequence
        if role is Role.ROLLOUT and request.max_model_len < longest:
            raise NotReady(
                f"register: the context of {request.service_id} is {request.max_model_len} tokens, data.max_prompt_length "
                f"+ data.max_response_length is {longest}",
                fix="lower them or use a model with a longer context",
            )

    async def Heartbeat(self, request: pb.HeartbeatRequest, context: grpc.aio.ServicerContext) -> pb.HeartbeatResponse:
        known = self._parts.run.fleet.beat(
            service_id=request.service_id,
            incarnation=request.incarnation,
            running=request.running,
            draining=request.draining,
            waits_for=request.waits_for,
            target=request.capacity,
            now_s=self._parts.run.clock.now(),
        )
        member = self._parts.run.fleet.members.get(request.service_id)
        if known and member is not None and member.role is Role.ROLLOUT:
            kv_use = request.kv_use if request.HasField("kv_use") else None
            self._parts.cache_use.add(member, kv_use=kv_use, preemptions=request.preemptions)
        if request.draining:
            self._parts.learner.leaves(request.incarnation)
        return pb.HeartbeatResponse(known=known, run_ended=self._parts.run.progress.state.final)

    async def GetBatch(
        self, request: pb.GetBatchRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.GetBatchResponse]:
        parts = self._parts
        self._parts.learner.check(request.fence)
        wait_s = min(duration_s(request.wait_s, field="batch: wait_s", may_be_0=True), LONGEST_POLL_S)

        async def find() -> BatchFile | str:
            if request.unusable_digest:
                digest = name(request.unusable_digest, field="batch: unusable_digest")
                why = line(request.unusable_why, field="batch: unusable_why")
                await parts.learner.cannot_train(request.step, digest=digest, why=why)
                self._parts.learner.check(request.fence)
            return await parts.learner.batch(request.step, wait_s=wait_s)

        try:
            found = await self._patience.unless_full("GetBatch", find)
        except DiskFull as full:
            found = str(full)
        self._parts.learner.check(request.fence)
        if isinstance(found, str):
            yield pb.GetBatchResponse(
                not_ready=pb.BatchNotReady(reason=found, ended=parts.learner.has_ended(request.step))
            )
            return
        header = pb.BatchHeader(
            step=found.step,
            groups=len(found.payloads),
            digest=found.digest,
            traceparents=parts.assigner.traceparents(found.step),
        )
        yield pb.GetBatchResponse(header=header)
        for payload in found.payloads:
            if request.as_stored:
                yield pb.GetBatchResponse(stored_group=payload)
            else:
                yield pb.GetBatchResponse(group=parts.codec.decode(payload))

    async def CommitStep(
        self, request: pb.CommitStepRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommitStepResponse:
        self._parts.learner.check(request.fence)
        if request.version.number != request.step + 1:
            made = version_from_proto(request.version)
            raise InvalidRequest(f"commit: step {request.step} makes version {request.step + 1}, not {made}")
        book = partial(
            self._parts.commits.step,
            request.step,
            version=version_from_proto(request.version),
            weights_digest=name(request.weights_digest, field="commit: weights_digest"),
            batch_digest=request.batch_digest,
            metrics=request.metrics,
            example=figures_from(request.example) if request.HasField("example") else None,
        )
        recorded = await self._patience.unless_full("CommitStep", book)
        return pb.CommitStepResponse(recorded_digest=recorded)

    async def CommitCheckpoint(
        self, request: pb.CommitCheckpointRequest, context: grpc.aio.ServicerContext
    ) -> pb.CommitCheckpointResponse:
        self._parts.learner.check(request.fence)
        path = request.path
        if not 0 < len(path) <= LONGEST_PATH or not path.isprintable():
            raise InvalidRequest(f"checkpoint: path must be 1 to {LONGEST_PATH} printable characters, got {len(path)}")
        book = partial(self._parts.commits.checkpoint, version_from_proto(request.version), path)
        await self._patience.unless_full("CommitCheckpoint", book)
        return pb.CommitCheckpointResponse()

    async def MeetLearner(
        self, request: pb.MeetLearnerRequest, context: grpc.aio.ServicerContext
    ) -> pb.MeetLearnerResponse:
        meetings = self._parts.meetings
        endpoint = await meetings.meet(request.round, request.endpoint, wait_s=request.wait_s)
        return pb.MeetLearnerResponse(endpoint=endpoint)

    async def _set_admission(self, admission: str) -> "pb.RunState.ValueType":
        progress = self._parts.run.progress
        if progress.state.final:
            raise NotReady(
                f"the run has ended ({progress.state.value})",
                fix="`sluice up --run-dir` goes on with it: raise run.total_steps where it is finished",
            )
        progress.admission = admission
        self._parts.run.board.changed.notify()
        await self._patience.unless_full("admission", self._parts.lifecycle.save)
        self._parts.run.events.emit("run_state", f"admission {admission}", labels={"state": admission})
        return status_wire.run_state(progress)
