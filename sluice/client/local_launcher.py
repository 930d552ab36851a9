"""`sluice up` as a child of a script: starts a recipe, hands out the coordinator's address, ends with the script.

who waits   for what                  unblocked by
start       the coordinator           the coordinator's address on the pipe, the launcher's end, launch.ready_timeout_s
end         the launcher              the launcher's end, launch.grace_s (then a second signal, then SIGKILL)
"""

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sluice.errors import ConfigError, Expired, LaunchError, NotReady
from sluice.process import exit_codes
from sluice.process.child import armed, module_command
from sluice.process.output import opened_log, tail
from sluice.run_dir.private import make_private_folder

_MARGIN_S = 60.0
"""Time for the rest of the launcher's work: imports, the embedded Redis, the last files."""


class LocalLauncher:
    """A running `sluice up`. Raises ConfigError for a recipe that cannot be used, LaunchError when the run does not start."""

    def __init__(self, recipe: str | Path, *, overrides: Sequence[str], run_dir: str | Path | None) -> None:
        from sluice.config.load import (
            load_config,
        )  # the slowest import of this package, and only a client that starts a run needs the schema
        from sluice.run_dir.naming import new_run_dir

        config = load_config(Path(recipe), overrides=overrides, environ=os.environ)
        self._launch = config.launch
        self.run_dir = Path(run_dir or new_run_dir(config)).resolve()
        self._log_path = self.run_dir / "logs" / "launcher.log"
        make_private_folder(self.run_dir)
        log = opened_log("sluice up", self._log_path)
        sets = [part for override in overrides for part in ("--set", override)]
        up = ["up", "-c", os.fspath(recipe), "--plain", "--run-dir", os.fspath(self.run_dir), *sets]
        read_fd, write_fd = os.pipe()
        with os.fdopen(read_fd, "rb", buffering=0) as ready, log:
            try:
                self._process = subprocess.Popen(
                    [*armed(signal.SIGTERM), *module_command("sluice.cli.main"), *up, "--ready-fd", str(write_fd)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # the script hears Ctrl-C, and ends the run in order
                    pass_fds=[write_fd],
                )
            finally:
                os.close(write_fd)
            try:
                self.address = self._address(ready.fileno())
            except BaseException:
                self.end()
                raise

    def wait(self, *, timeout_s: float | None) -> int:
        """The exit code of `sluice up`. Raises Expired."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Expired(
                f"wait: the run in {self.run_dir} has not ended after {timeout_s:g} s", fix="wait longer, or stop it"
            ) from None

    def end(self) -> None:
        """Ends `sluice up` in order, else by a second signal, else by SIGKILL; the children of a killed launcher die too."""
        for signum in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                return
            self._process.send_signal(signum)
            try:
                self._process.wait(2 * self._launch.grace_s + _MARGIN_S)
            except subprocess.TimeoutExpired:
                continue

    def _address(self, read_fd: int) -> str:
        limit_s = self._launch.ready_timeout_s + _MARGIN_S
        if not select.select([read_fd], [], [], limit_s)[0]:
            raise LaunchError(
                f"sluice up has no coordinator after {limit_s:.0f} s; its log ends:\n{tail(self._log_path)}"
            )
        if address := os.read(read_fd, 1024).decode():
            return address
        kind = ConfigError if self._process.wait() == exit_codes.BAD_USAGE else LaunchError
        raise kind(f"sluice up ended with code {self._process.returncode}; its log ends:\n{tail(self._log_path)}")


def started(launcher: LocalLauncher | None) -> LocalLauncher:
    """The launcher of a client that has one. Raises NotReady."""
    if launcher is None:
        raise NotReady("wait: this client did not start the run", fix="watch() lasts until any run has ended")
    return launcher
