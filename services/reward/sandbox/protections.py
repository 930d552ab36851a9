"""Logs at the start of the service which protections of the sandbox are on, and which the machine forbids."""

import asyncio
import json
from collections.abc import Mapping

import structlog

from services.reward.verifiers import code
from sluice.errors import ConfigError, LaunchError
from sluice.process.child import module_command

log = structlog.get_logger(__name__)

_PROBE_LIMIT_S = 60.0

_ALWAYS = ("wall clock", "memory", "cpu time", "file size")
_WHERE_PERMITTED: Mapping[str, str] = {
    "network": "graders and programs reach the network",
    "processes": "a fork bomb fills the machine until its wall-clock limit",
    "survivors": "what a grader started in the background goes on if its guard is killed (by the out-of-memory killer)",
}


async def check_programs(place: str) -> None:
    """Raises ConfigError, in one line, where programs of the route `place` cannot be shut in; an empty `place` is no route."""
    problem = await asyncio.to_thread(code.sandbox_problem) if place else None
    if problem:
        raise ConfigError(f"{place}: code: {problem}")


async def say_protections() -> None:
    """Logs `sandbox`, and `sandbox_incomplete` with the consequences where a protection is missing."""
    permitted = await _probe()
    missing = {name: why for name, why in _WHERE_PERMITTED.items() if not permitted[name]}
    log.info("sandbox", on=[*_ALWAYS, *(name for name in _WHERE_PERMITTED if name not in missing)], off=list(missing))
    if missing:
        log.warning(
            "sandbox_incomplete",
            consequence="; ".join(missing.values()),
            fix="permit unprivileged user namespaces: on the host `sysctl kernel.apparmor_restrict_unprivileged_userns=0` "
            "and user.max_user_namespaces > 0, in Docker a seccomp profile that allows unshare; or limit the container "
            "from outside (`--pids-limit`, a network that leads nowhere); see docs/rewards.md",
        )


async def _probe() -> dict[str, bool]:
    """The answer of a process that tries the protections out. Raises LaunchError when the process does not answer."""
    process = await asyncio.create_subprocess_exec(
        *module_command("services.reward.sandbox.isolation"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_PROBE_LIMIT_S):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise LaunchError(f"reward: the probe of the sandbox did not end within {_PROBE_LIMIT_S:.0f} s") from None
    if process.returncode != 0:
        raise LaunchError(f"reward: the probe of the sandbox ended with {process.returncode}; its error is above")
    return json.loads(said)
