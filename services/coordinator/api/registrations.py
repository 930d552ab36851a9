"""What a service, or the launcher, may say of services: bounds of every name and number."""

import re
from typing import Final

from services.coordinator.api.scale_orders import Outcome
from services.coordinator.state.member import EnvironmentInfo, Gpus, Role
from services.coordinator.state.places import Place
from sluice.errors import Forbidden, InvalidRequest, NotReady
from sluice.rpc import access
from sluice.rpc.requests import duration_s, line, name
from sluice.v1 import coordinator_pb2 as pb

LARGEST_CAPACITY: Final = 65_536
"""The largest capacity that is noted. Chosen: 64 times what vLLM runs at once by default."""

MOST_PLACES: Final = 16_384
"""Services of one report. Chosen: 16 times what one launcher was ever tried with."""

MOST_GPUS: Final = 65_536
"""GPUs of one service. Chosen: far more than any learner has ranks."""

MOST_ENVIRONMENTS: Final = 256
"""Environments of one server. Chosen: more than a recipe that people read names."""

_ADDRESS = re.compile(r"[A-Za-z0-9._:\[\]%-]{1,255}:([0-9]{1,5})")
_MOST_PORT: Final = 65_535


def check_registration(request: pb.RegisterRequest) -> None:
    """Raises InvalidRequest for a name, an address or a digest that cannot be one."""
    check_address(request.address, field="register: address")
    check_address(request.metrics_address, field="register: metrics_address", may_be_empty=True)
    name(request.service_id, field="register: service_id", may_be_empty=True)
    name(request.incarnation, field="register: incarnation")
    for field in ("model_hash", "tokenizer_hash"):
        name(getattr(request, field), field=f"register: {field}", may_be_empty=True)
    line(request.engine, field="register: engine")
    name(request.device, field="register: device", may_be_empty=True)
    name(request.host, field="register: host", may_be_empty=True)
    name(request.memory, field="register: memory", may_be_empty=True)
    for step in request.trained:
        name(step.batch_digest, field="register: trained.batch_digest", may_be_empty=True)
        name(step.weights_digest, field="register: trained.weights_digest", may_be_empty=True)
        for group_id in step.group_ids:
            name(group_id, field="register: trained.group_ids")


def environments_from(request: pb.RegisterRequest) -> dict[str, EnvironmentInfo]:
    """Wire -> core: what an environment server hosts, by name. Raises InvalidRequest."""
    if request.role != pb.SERVICE_ROLE_ENVIRONMENT:
        if request.environments:
            raise InvalidRequest("register: environments are for SERVICE_ROLE_ENVIRONMENT alone")
        return {}
    if not 0 < len(request.environments) <= MOST_ENVIRONMENTS:
        raise InvalidRequest(
            f"register: environments: must be 1 to {MOST_ENVIRONMENTS}, got {len(request.environments)}"
        )
    hosted: dict[str, EnvironmentInfo] = {}
    for info in request.environments:
        called = name(info.name, field="register: environments.name")
        if called in hosted:
            raise InvalidRequest(f"register: environments: names must be unique, got {called} twice")
        version = name(info.version, field="register: environments.version")
        hosted[called] = EnvironmentInfo(version=version, scores=info.scores)
    return hosted


def gpus_from(request: pb.RegisterRequest) -> Gpus | None:
    """Wire -> core; None where the service has not told. Raises InvalidRequest."""
    if not request.HasField("gpus"):
        return None
    told = request.gpus
    if not 0 <= told.count <= MOST_GPUS or told.memory_bytes < 0:
        raise InvalidRequest(
            f"register: gpus: must be 0 to {MOST_GPUS} of 0 or more bytes, got {told.count} of {told.memory_bytes}"
        )
    return Gpus(name=line(told.name, field="register: gpus.name"), count=told.count, memory_bytes=told.memory_bytes)


def check_may_join(shown: access.Role | None, role: Role) -> None:
    """Raises Forbidden for a caller whose credentials show another role; a reward service also hosts environments."""
    may = {role.value} | ({access.Role.REWARD.value} if role is Role.ENVIRONMENT else set())
    if shown is not None and shown.value not in may:
        raise Forbidden(f"register: the caller is a {shown}, it may not join as a {role.value}")


def places_from(request: pb.ReportPlacesRequest) -> list[Place]:
    """Wire -> core. Raises InvalidRequest for a name or a time that cannot be one."""
    if len(request.places) > MOST_PLACES:
        raise InvalidRequest(f"places: at most {MOST_PLACES} services, got {len(request.places)}")
    return [
        Place(
            service_id=name(place.service_id, field="places: service_id"),
            node=name(place.node, field="places: node", may_be_empty=True),
            waits_for=line(place.waits_for, field="places: waits_for"),
            since_s=duration_s(place.since_s, field="places: since_s", may_be_0=True),
        )
        for place in request.places
    ]


def outcome_from(request: pb.ReportPlacesRequest) -> Outcome | None:
    """Wire -> core; None in a report that is about no order. Raises InvalidRequest for what can be no outcome."""
    if not request.HasField("scaled"):
        return None
    scaled = request.scaled
    if scaled.replicas < 0:
        raise InvalidRequest(f"places: scaled.replicas must be >= 0, got {scaled.replicas}")
    return Outcome(
        order=name(scaled.order, field="places: scaled.order"),
        replicas=scaled.replicas,
        refused=line(scaled.refused, field="places: scaled.refused"),
    )


def check_address(value: str, *, field: str, may_be_empty: bool = False) -> None:
    """Raises InvalidRequest for what is no HOST:PORT."""
    if not value and may_be_empty:
        return
    found = _ADDRESS.fullmatch(value)
    if found is None or int(found[1]) > _MOST_PORT:
        raise InvalidRequest(f"{field} must be HOST:PORT{' or empty' * may_be_empty}, got {value[:80]!r}")


def serves_own_weights(request: pb.RegisterRequest, *, wanted: bool) -> bool:
    """Whether a rollout serves its model folder's weights. Raises NotReady unless that is what is `wanted` here."""
    if request.own_weights and not wanted:
        raise NotReady(
            f"register: {request.service_id} serves its folder's own weights, here a learner pushes weights",
            fix="start it without --own-weights",
        )
    if wanted and not request.own_weights:
        raise NotReady(
            f"register: {request.service_id} waits for weights, here is an evaluation without a learner",
            fix="start it with --own-weights",
        )
    return wanted
