"""`python -m services.coordinator.data_prep NAME`: the program behind `sluice data prepare`."""

import argparse
import sys
from pathlib import Path

from services.coordinator.data_prep.distinct import Counts, write_distinct
from services.coordinator.data_prep.published import HUB, PUBLISHED, Published
from services.coordinator.data_prep.source import Source, fetched_source, local_source
from sluice.errors import ConfigError, DataError, SluiceError
from sluice.flags import add_data_prepare_flags


def main(argv: list[str] | None = None) -> int:
    """Prepares one data set; returns the exit code: 0 done, 1 failed, 2 bad usage, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m services.coordinator.data_prep")
    add_data_prepare_flags(parser)
    args = parser.parse_args(argv)
    try:
        print(_prepare(args))
    except SluiceError as error:
        print(f"sluice: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except OSError as error:  # a full disk, a folder that cannot be written
        print(f"sluice: data prepare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _prepare(args: argparse.Namespace) -> str:
    """Writes the file; returns the text to print."""
    published = _published(args.name)
    target: Path = (args.out / published.file_name).resolve()
    if target.exists() and not args.force:
        raise DataError(f"{target}: exists; give --force to replace it, or another --out")
    source = _source(published, args)
    if target.exists() and source.path.samefile(target):
        raise DataError(f"--out: {target} is the source itself; give another folder")
    counts = write_distinct(source.path, target)
    return _page(published, source, target, counts)


def _published(name: str) -> Published:
    if name not in PUBLISHED:
        raise ConfigError(f"data prepare: NAME must be one of {', '.join(PUBLISHED)}, got {name!r}")
    return PUBLISHED[name]


def _source(published: Published, args: argparse.Namespace) -> Source:
    if args.source is None:
        print(f"fetching {published.repository} from {HUB} ...", file=sys.stderr, flush=True)
        return fetched_source(published, revision=args.revision)
    if args.revision is not None:
        raise ConfigError("--revision: is of the hub; leave it out beside --source")
    return local_source(published, args.source)


def _page(published: Published, source: Source, target: Path, counts: Counts) -> str:
    lines = [f"{target}: {counts.rows} rows, {counts.prompts} distinct prompts"]
    if counts.conflicts:
        lines.append(f"  {counts.conflicts} of the copies had another answer; the first one stays")
    lines.append(f"source   {source.path}")
    lines.append(f"sha256   {source.sha256()}")
    if source.revision is not None:
        lines.append(f"revision {source.revision}   (--revision fetches this one again)")
    recipe = published.recipe.format(file=target, prompts=counts.prompts)
    return "\n".join([*lines, "", "In the recipe:", "", recipe])


if __name__ == "__main__":
    sys.exit(main())
