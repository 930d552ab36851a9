"""The runs that the pages show, by name: a directory, a coordinator, or both of one run."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sluice.config.load import parse_config
from sluice.config.schema import Config
from sluice.errors import NotFound, SluiceError
from sluice.report.metrics import RunMetrics, metrics_of
from sluice.report.summary import SUMMARY_FILE
from sluice.rpc.access import Role
from sluice.rpc.credentials import load_credentials
from sluice.run_dir.json_lines import JsonObject
from sluice.run_dir.naming import ADDRESS_FILE
from sluice.ui.files import RunFiles, check_run_dir
from sluice.ui.live import Live
from sluice.v1 import coordinator_pb2 as pb

MOST_RUNS = 12
"""Laid over each other they would be no picture any more."""
COPIED_S = 5.0
"""A copy of a run directory may have its files' times in any order, this close together."""


@dataclass(kw_only=True, slots=True, eq=False)
class Run:
    """One run; at least one of `files` and `live` is there."""

    name: str
    files: RunFiles | None
    live: Live | None
    told: Config | None = field(default=None)
    """The configuration that the coordinator told, where there are no files."""
    problem: str = ""
    """Why the coordinator's configuration cannot be read."""

    def metrics(self) -> RunMetrics:
        """The metrics in the files, else those that the coordinator told since the page was opened."""
        if self.files is not None:
            return self.files.metrics()
        lines: list[JsonObject] = []
        if self.live is not None:
            lines = [{"kind": "step", **line} for line in self.live.steps.values()]
            lines += [_line(one) for one in (self.live.status.evaluations if self.live.status is not None else ())]
        return metrics_of(lines, path=Path(self.name))

    def config(self) -> Config:
        """The resolved configuration. Raises NotFound."""
        if self.files is not None:
            return self.files.config()
        if self.told is None:
            why = self.problem or "has not been told by the coordinator yet; look again in a moment"
            raise NotFound(f"the configuration of {self.name}: {why}")
        return self.told

    def ledger_files(self) -> RunFiles:
        """Raises NotFound for a run whose files are on another machine."""
        if self.files is None:
            raise NotFound(
                f"{self.name}: its directory is not on this machine, and this view reads the run's files; start `sluice ui` "
                "where the run directory is"
            )
        return self.files

    async def ask_config(self) -> None:
        """Has the coordinator tell the configuration of a run without files; `problem` says why it could not."""
        if self.files is not None or self.told is not None or self.live is None or self.live.client is None:
            return
        try:
            told = await self.live.client.config()
        except SluiceError as error:
            self.problem = str(error)
            return
        try:
            self.told = parse_config(told, where=f"the configuration of {self.live.address}")
        except SluiceError as error:
            self.problem = f"{error}; is the coordinator of another version of Sluice?"


def _line(told: pb.Evaluation) -> JsonObject:
    """An evaluation that a coordinator told, as in metrics.jsonl."""
    measured = {"eval/avg_at_n": told.avg_at_n, "eval/pass_at_n": told.pass_at_n, "eval/greedy": told.greedy}
    if told.HasField("maj_at_n"):
        measured["eval/maj_at_n"] = told.maj_at_n
    for name, interval in (("avg_at_n", "avg_interval"), ("pass_at_n", "pass_interval"), ("maj_at_n", "maj_interval")):
        if told.HasField(interval):
            ends: pb.Interval = getattr(told, interval)
            measured[f"eval/{name}_low"], measured[f"eval/{name}_high"] = ends.low, ends.high
    size = {"n": told.n, "prompts": told.prompts, "mean_response_tokens": told.mean_response_tokens}
    place = {"version": told.version.number, "lineage": told.version.lineage}
    return {"kind": "eval", **place, **size, **measured, **({"set": told.set} if told.set else {})}


class Runs:
    """The runs that the pages show, in the order in which they were named."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs: Mapping[str, Run] = {run.name: run for run in runs}

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def first(self) -> Run:
        """The run that an address without a name means."""
        return next(iter(self._runs.values()))

    def named(self, name: str) -> Run:
        """The run of an address; the first one for an empty name. Raises NotFound."""
        if not name:
            return self.first
        if name not in self._runs:
            raise NotFound(f"run {name[:100]!r}: is none of those shown here: {', '.join(self._runs)}")
        return self._runs[name]


def open_runs(
    folders: Iterable[Path], *, coordinator: str, credentials: str | Path | None, starts: bool = False
) -> Runs:
    """The runs of a command line. Raises SluiceError: a folder that is no run, too many runs, bad credentials.

    A folder whose coordinator-address names a coordinator is shown live unless the run has ended; `starts` says that it has
    been started again.
    """
    found: list[Run] = []
    folders = [folder.resolve() for folder in folders]
    if len(folders) > MOST_RUNS:
        raise NotFound(f"RUN: must be at most {MOST_RUNS} run directories, got {len(folders)}; name fewer")
    folders = list(dict.fromkeys(folders))
    for folder in folders:
        check_run_dir(folder)
        live = _live_of(folder, credentials, starts=starts) if not coordinator else None
        found.append(Run(name=_name(folder, folders), files=RunFiles(folder), live=live))
    if coordinator:
        live = Live(coordinator, credentials=load_credentials(credentials, role=Role.OPERATOR))
        if len(found) == 1:
            found[0].live = live
        else:
            found.insert(0, Run(name=coordinator, files=None, live=live))
    return Runs(found)


def _live_of(folder: Path, credentials: str | Path | None, *, starts: bool) -> Live | None:
    """The coordinator of a run that has not ended, or that `starts` again; None where the folder names none."""
    files = RunFiles(folder)
    if not (folder / ADDRESS_FILE).exists() or (not starts and _has_ended(folder)):
        return None

    def where() -> str:
        return (folder / ADDRESS_FILE).read_text(encoding="utf-8").strip()

    own = load_credentials(credentials, role=Role.OPERATOR) if credentials else None
    try:
        if own is None:
            given = files.config().network.credentials
            own = load_credentials(Path(given) / Role.OPERATOR if given else None, role=Role.OPERATOR)
        return Live(where(), credentials=own, where=where)
    except (SluiceError, OSError, UnicodeDecodeError):
        return None


def _has_ended(folder: Path) -> bool:
    """Whether the summary is newer than the address; the older one is that of a run that was started again."""
    try:
        ended_s = (folder / SUMMARY_FILE).stat().st_mtime
    except OSError:
        return False
    try:
        return (folder / ADDRESS_FILE).stat().st_mtime <= ended_s + COPIED_S
    except OSError:
        return True


def _name(folder: Path, folders: list[Path]) -> str:
    """As many of the last parts of the path as tell it from the others."""
    for count in range(1, len(folder.parts)):
        same = [one for one in folders if one.parts[-count:] == folder.parts[-count:]]
        if len(same) == 1:
            return "/".join(folder.parts[-count:])
    return str(folder)
