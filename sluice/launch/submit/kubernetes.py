"""`sluice submit --on kubernetes`: the run's manifests (kubernetes_text.py), handed in, watched and ended by kubectl.

A job's id is KIND/NAME.NAMESPACE@CONTEXT, `job/math-1.training@cluster-a`. Stopping suspends the job: its pods get SIGTERM and
time to end in order, the job stays, and the same submission again goes on with the run.
"""

import contextlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sluice.errors import ConfigError, NotFound, SluiceError
from sluice.launch.submit.kubectl import Place, place_of
from sluice.launch.submit.kubernetes_text import kind_of, name_of, rendered
from sluice.launch.submit.port import JobState, Submission
from sluice.rpc.access import Role

_SECRETS = (Role.COORDINATOR, Role.LEARNER, Role.OPERATOR, Role.ROLLOUT, Role.REWARD)
_RESOURCES = {"job": "jobs", "jobset": "jobsets.jobset.x-k8s.io", "rayjob": "rayjobs.ray.io"}
_ID = re.compile(rf"({'|'.join(_RESOURCES)})/([a-z0-9-]+)\.([a-z0-9-]+)@(.+)")
_OLDEST = (1, 26)
"""The first Kubernetes whose Jobs know all of our fields: by `podFailurePolicy` a run that has failed is not repeated."""
_APPLY_S = 60
_LOOK_EVERY_S = 2.0


class KubernetesSubmitter:
    """Hands runs to a cluster of Kubernetes."""

    name = "kubernetes"

    def render(self, submission: Submission) -> Mapping[str, str]:
        """Submitter.render."""
        return rendered(submission)

    def submit(self, submission: Submission) -> str:
        """Submitter.submit."""
        files = dict(rendered(submission))
        text = "\n".join(files.values())
        settings, kind, name = submission.config.kubernetes, kind_of(submission.config), name_of(submission)
        place = place_of(settings.context, settings.namespace)
        job = _Job(kind=kind, name=name, place=place)
        _check(place, submission)
        _remove_ended(job)
        place.call("apply", "--dry-run=server", "-f", "-", said=text, within_s=_APPLY_S)
        try:
            place.call("apply", "-f", "-", said=text, within_s=_APPLY_S)
        except SluiceError:
            files.pop(
                "claim.yaml", None
            )  # a claim may hold an earlier start's run directory, and so may a user's own text
            if submission.template is None:
                with contextlib.suppress(SluiceError):
                    place.call(
                        "delete", "--ignore-not-found", "-f", "-", said="\n".join(files.values()), within_s=_APPLY_S
                    )
            raise
        return job.id

    def state(self, job: str) -> JobState:
        """Submitter.state."""
        found = _job(job).found()
        if not found:
            raise NotFound(f"kubernetes: there is no {job}; it was deleted, or never handed in")
        return state_of(found)

    def stop(self, job: str) -> None:
        """Submitter.stop: the job's pods end in order; those of rollouts and rewards too."""
        of = _job(job)
        of.place.call("patch", of.resource, of.name, "--type=merge", "-p", '{"spec":{"suspend":true}}')
        if of.kind != "rayjob":  # KubeRay ends the workers itself
            of.place.call("scale", "deployment", "-l", _labels(of.name), "--replicas=0")

    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        """Submitter.logs: of the control pod, and with `follow` of those that replace it."""
        of = _job(job)
        which = ["logs", "-l", f"{_labels(of.name)},app.kubernetes.io/component=control", "--tail=-1"]
        if not follow:
            yield from of.place.lines(*which)
            return
        since: list[str] = []
        while True:
            over = self.state(job) in _OVER
            for line in of.place.lines(*which, *since, "--follow"):
                yield line
                since = [f"--since-time={_utc(time.time())}"]
            if over:
                return
            time.sleep(_LOOK_EVERY_S)


_OVER = (JobState.FINISHED, JobState.FAILED, JobState.STOPPED)


def state_of(found: Mapping[str, Any]) -> JobState:
    """The state of a Job, a JobSet or a RayJob, by what its controller has written."""
    status = found.get("status") or {}
    conditions = {one["type"] for one in status.get("conditions") or () if one.get("status") == "True"}
    ray = {"SUCCEEDED": "Complete", "FAILED": "Failed", "STOPPED": "Suspended", "RUNNING": "Running"}
    conditions.add(ray.get(status.get("jobStatus", ""), ""))
    if conditions & {"Complete", "Completed"}:
        return JobState.FINISHED
    if "Failed" in conditions:
        return JobState.FAILED
    if found.get("spec", {}).get("suspend"):
        return JobState.STOPPED
    ready = [
        status.get("ready", status.get("active", 0)),
        *(one.get("ready", 0) for one in status.get("replicatedJobsStatus") or ()),
    ]
    return JobState.RUNNING if any(ready) or "Running" in conditions else JobState.WAITING


@dataclass(frozen=True, kw_only=True, slots=True)
class _Job:
    kind: str
    name: str
    place: Place

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}.{self.place.namespace}@{self.place.context}"

    @property
    def resource(self) -> str:
        return _RESOURCES[self.kind]

    def found(self) -> dict[str, Any] | None:
        return self.place.find(self.resource, self.name)


def _job(job: str) -> _Job:
    found = _ID.fullmatch(job)
    if found is None:
        raise ConfigError(f"--job: a job of Kubernetes is KIND/NAME.NAMESPACE@CONTEXT, got {job}")
    kind, name, namespace, context = found.groups()
    return _Job(kind=kind, name=name, place=place_of(context, namespace))


def _check(place: Place, submission: Submission) -> None:
    """Looks for what the manifests name, so that no pod waits for it. Raises ConfigError with every problem."""
    if place.find("namespace", place.namespace) is None:
        raise ConfigError(
            f"kubernetes.namespace: {place.namespace} is not there in the context {place.context}; make it with `kubectl "
            f"create namespace {place.namespace}`, or name another"
        )
    settings = submission.config.kubernetes
    found = (check(place, submission) for check in (_version_problem, _claim_problem, _kind_problem))
    problems = [problem for problem in found if problem]
    secrets = {f"{settings.credentials}-{role}": role for role in _SECRETS}
    if missing := place.missing("secret", list(secrets)):
        made = " && ".join(
            f"kubectl --namespace {place.namespace} create secret generic {name} --from-file=creds/{secrets[name]}"
            for name in missing
        )
        problems.append(
            f"kubernetes.credentials: there is no Secret {', '.join(missing)} in {place.namespace}; make them with `sluice "
            f"certs creds && {made}`"
        )
    if problems:
        raise ConfigError("\n".join(problems))


def _version_problem(place: Place, submission: Submission) -> str:
    if submission.template is not None or kind_of(submission.config) == "rayjob":
        return ""
    version = json.loads(place.call("get", "--raw", "/version"))
    if (int(version["major"]), int(version["minor"].rstrip("+"))) >= _OLDEST:
        return ""
    return (
        f"kubernetes.context: {place.context} is Kubernetes {version['gitVersion']}, the run's Job needs "
        f"{'.'.join(map(str, _OLDEST))} for podFailurePolicy; name another context, or hand in a Job without it as --template"
    )


def _claim_problem(place: Place, submission: Submission) -> str:
    claim = submission.config.kubernetes.claim
    if claim is None:
        return ""
    found = place.find("persistentvolumeclaim", claim)
    if found is None:
        return f"kubernetes.claim: no PersistentVolumeClaim {claim} in {place.namespace}; leave it out to have one made"
    if not found:
        return ""
    modes = found.get("spec", {}).get("accessModes") or []
    if "ReadWriteMany" in modes or submission.config.kubernetes.access_mode in modes:
        return ""
    return (
        f"kubernetes.claim: {claim} must be ReadWriteMany, since rollouts on other nodes read what the learner writes, it is "
        f"{', '.join(modes)}; give one of a shared storage class, or kubernetes.access_mode=ReadWriteOnce where all pods run "
        "on one node"
    )


def _kind_problem(place: Place, submission: Submission) -> str:
    kind = kind_of(submission.config)
    group = {"jobset": "jobset.x-k8s.io", "rayjob": "ray.io"}.get(kind)
    if group is None or place.call("api-resources", "--api-group", group, "--no-headers").strip():
        return ""
    why = {"jobset": "launch.learner_nnodes > 1 needs JobSet", "rayjob": "launch.engine: ray needs KubeRay"}[kind]
    return f"kubernetes: {why}, and the context {place.context} has nothing of {group}; install it there"


def _remove_ended(job: _Job) -> None:
    """Makes room for a run that goes on. Raises ConfigError when the job of this name has not ended."""
    found = job.found()
    if not found:
        return
    if (state := state_of(found)) not in _OVER:
        raise ConfigError(
            f"kubernetes: {job.id} is {state} already; `sluice stop --job kubernetes/{job.id}` ends it, another --run-dir is "
            "another run"
        )
    job.place.call("delete", job.resource, job.name, "--wait=true", "--cascade=foreground", within_s=_APPLY_S)


def _labels(name: str) -> str:
    return f"app.kubernetes.io/name=sluice,app.kubernetes.io/instance={name}"


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
