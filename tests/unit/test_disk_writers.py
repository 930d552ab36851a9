"""Every place that writes files, and what becomes of the write on a full disk: a new place fails here until it is listed."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent

WAITS = "waits for room (DiskWaits), or a caller in this list does"
LEFT_OUT = "is left out with one line"
TRIED_AGAIN = "costs this one; the next is tried again"
ONE_LINE = "a command or a request that is refused with one line"
NOT_THE_RUN = "writes into a folder of its own outside the run directory, or into /proc"

WRITERS = {
    "services/coordinator/app/serving.py": NOT_THE_RUN,  # the ready pipe
    "services/coordinator/data_prep/distinct.py": ONE_LINE,
    "services/coordinator/loggers/to_tensorboard.py": LEFT_OUT,
    "services/coordinator/recovery/rollback_files.py": WAITS,  # when the coordinator opens the run; a request is refused
    "services/coordinator/storage/evaluation_files.py": WAITS,
    "services/coordinator/storage/identity.py": WAITS,
    "services/coordinator/storage/ledger_writer.py": WAITS,
    "services/coordinator/storage/prompt_places.py": LEFT_OUT,
    "services/coordinator/storage/run_files.py": WAITS,
    "services/learner/__main__.py": WAITS,
    "services/learner/base_folder.py": ONE_LINE,
    "services/learner/batches/batch_flat.py": LEFT_OUT,
    "services/learner/checkpoint/export.py": WAITS,  # the exports on the way are left out (exports.py)
    "services/learner/checkpoint/folders.py": TRIED_AGAIN,
    "services/learner/checkpoint/training_state.py": TRIED_AGAIN,
    "services/learner/checkpoint/writer.py": TRIED_AGAIN,
    "services/learner/distributed/shared_folders.py": WAITS,
    "services/learner/gguf_base/conversion.py": ONE_LINE,
    "services/learner/policy/lora.py": WAITS,
    "services/learner/replay/rank.py": ONE_LINE,
    "services/learner/replay/__main__.py": NOT_THE_RUN,
    "services/learner/sft_base/training.py": ONE_LINE,
    "services/learner/training/peak_memory.py": NOT_THE_RUN,
    "services/learner/rank_worker.py": LEFT_OUT,
    "services/reward/rescore/__main__.py": ONE_LINE,
    "services/reward/sandbox/code_child.py": NOT_THE_RUN,
    "services/reward/sandbox/entering.py": NOT_THE_RUN,
    "services/reward/sandbox/isolation.py": NOT_THE_RUN,
    "services/reward/sandbox/small_root.py": NOT_THE_RUN,
    "services/reward/verifiers/code.py": NOT_THE_RUN,
    "sluice/cli/agent.py": ONE_LINE,
    "sluice/cli/config.py": ONE_LINE,
    "sluice/cli/demo_llm.py": ONE_LINE,
    "sluice/cli/model_evaluation.py": ONE_LINE,
    "sluice/cli/submissions.py": ONE_LINE,
    "sluice/cli/ui.py": LEFT_OUT,  # logs/ui.log
    "sluice/cli/up.py": ONE_LINE,
    "sluice/client/local_launcher.py": ONE_LINE,
    "sluice/launch/control_plane.py": WAITS,
    "sluice/launch/embedded_redis.py": WAITS,
    "sluice/launch/engines/checked.py": WAITS,
    "sluice/launch/engines/slurm_step.py": WAITS,  # the log; what is relayed into it later is left out
    "sluice/launch/learner_node.py": NOT_THE_RUN,
    "sluice/launch/own_network.py": WAITS,
    "sluice/launch/run.py": WAITS,
    "sluice/launch/run_lock.py": WAITS,
    "sluice/launch/submit/slurm.py": ONE_LINE,
    "sluice/lineage.py": WAITS,
    "sluice/process/node_check.py": LEFT_OUT,  # the service that is then started waits
    "sluice/process/output.py": WAITS,
    "sluice/report/curves.py": LEFT_OUT,
    "sluice/report/html_report.py": LEFT_OUT,
    "sluice/report/summary.py": WAITS,
    "sluice/rpc/tokens.py": ONE_LINE,
    "sluice/run_dir/durable.py": WAITS,
    "sluice/run_dir/full_disk.py": WAITS,
    "sluice/run_dir/private.py": WAITS,
    "sluice/run_dir/thinning.py": LEFT_OUT,
    "sluice/telemetry/traces/otlp_file.py": LEFT_OUT,
    "sluice/weights/snapshot_files.py": TRIED_AGAIN,  # the push
}

_CALLS = {
    *(
        "write_text",
        "write_bytes",
        "mkdir",
        "makedirs",
        "touch",
        "link",
        "symlink",
        "mkdtemp",
        "mkstemp",
        "savefig",
        "save",
    ),
    *(
        "write_synced",
        "append_line",
        "append_lines",
        "name_synced",
        "make_folder",
        "make_private_folder",
        "open_private",
    ),
    *("serialize_file", "save_file", "save_pretrained"),
    *("savez", "savez_compressed", "copy", "copy2", "copytree", "move", "save_shards", "write_table", "write_batch"),
    *("NamedTemporaryFile", "TemporaryDirectory", "SummaryWriter"),
}
"""Names of what makes files, folders or names."""

_INNOCENT = {"copy", "save", "move", "link"}
"""Names that other things have too: these count only as functions of a module."""

_MODULES = {"os", "shutil", "torch", "np", "image"}


def test_every_writer_is_listed_with_what_becomes_of_it_on_a_full_disk() -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in ("sluice", "services")
        for path in (ROOT / folder).rglob("*.py")
        if "testing" not in path.parts and not path.name.endswith(("_pb2.py", "_pb2_grpc.py")) and any(_writes(path))
    }
    assert found - WRITERS.keys() == set(), "a new writer: what becomes of it on a full disk?"
    assert WRITERS.keys() - found == set(), "no writer any more"


def _writes(path: Path) -> Iterator[int]:
    """Lines with calls that make something on a disk, or with such a function that is given to a caller."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        given = getattr(node, "attr", getattr(node, "id", "")) in _CALLS - _INNOCENT
        if given or (isinstance(node, ast.Call) and _makes(node)):
            yield node.lineno


def _makes(call: ast.Call) -> bool:
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in ("open", "fdopen"):
        return any(
            isinstance(part, ast.Constant) and isinstance(part.value, str) and set(part.value) & set("wax+")
            for part in call.args[-2:]
            if isinstance(part, ast.Constant) and len(str(part.value)) <= 3
        ) or "O_CREAT" in ast.dump(call)
    if name in _INNOCENT:
        owner = function.value if isinstance(function, ast.Attribute) else None
        return isinstance(owner, ast.Name) and owner.id in _MODULES
    return name in _CALLS
