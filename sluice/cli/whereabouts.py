"""Where the run of a directory is, and the folder with the credentials to call it with: `--run-dir` of the verbs."""

from pathlib import Path

from sluice.errors import NotFound


def where(run_dir: Path) -> tuple[str, str]:
    """The coordinator's HOST:PORT and the operator's folder, empty for a run without credentials. Raises NotFound."""
    from sluice.config.load import parse_config
    from sluice.launch.commands import credentials_folder
    from sluice.rpc.access import Role
    from sluice.run_dir.naming import ADDRESS_FILE

    said, path = run_dir / ADDRESS_FILE, run_dir / "config.yaml"
    try:
        address, config = said.read_text(encoding="utf-8").strip(), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(
            f"--run-dir: must be the directory of a run that `sluice up` has started, got {run_dir} ({error}); --coordinator "
            "HOST:PORT names a run, too"
        ) from error
    return address, credentials_folder(parse_config(config, where=str(path)), Role.OPERATOR)
