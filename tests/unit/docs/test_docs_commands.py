"""Every command line in the documentation parses, with the parser of the command that it names. Nothing is run."""

import argparse
import importlib
import itertools
import json
import re
from collections.abc import Sequence

import pytest
import yaml

import sluice.cli.main
from sluice.config.problems import schema_keys
from sluice.v1 import coordinator_pb2, learner_pb2, reward_pb2, rollout_pb2
from tests.unit.docs.pages import PAGES, ROOT, commands

COMMANDS = sorted({tuple(words) for page in PAGES for words in commands(page)})
MENTIONED = {verb for page in PAGES for verb in re.findall(r"`sluice ([a-z-]+)", page.read_text(encoding="utf-8"))}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


class Parsed(Exception):
    """The command line is fine; here the command itself would begin."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> None:
        raise Parsed(parse(self, argv))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)


def of(*names: str) -> list[tuple[str, ...]]:
    return [words for words in COMMANDS if words[: len(names)] == names]


@pytest.mark.usefixtures("only_parse")
@pytest.mark.parametrize("words", of("sluice"), ids=" ".join)
def test_a_sluice_command_parses(words: tuple[str, ...]) -> None:
    with pytest.raises(Parsed):
        sluice.cli.main.main(words[1:])


@pytest.mark.parametrize("verb", sorted(MENTIONED))
def test_a_verb_that_is_mentioned_exists(verb: str) -> None:
    with pytest.raises(SystemExit) as end:
        sluice.cli.main.main([verb, "--help"])
    assert end.value.code == 0


@pytest.mark.usefixtures("only_parse")
@pytest.mark.parametrize("words", [words for words in of("python", "-m") if "services" in words[2]], ids=" ".join)
def test_a_service_command_parses(words: tuple[str, ...]) -> None:
    module = importlib.import_module(words[2])
    program = module if hasattr(module, "main") else importlib.import_module(f"{words[2]}.__main__")
    with pytest.raises(Parsed):
        program.main(list(words[3:]))


@pytest.mark.parametrize("words", of("make"), ids=" ".join)
def test_a_make_target_exists(words: tuple[str, ...]) -> None:
    assert words[1] in TARGETS


@pytest.mark.parametrize("words", of("npm"), ids=" ".join)
def test_an_npm_script_exists(words: tuple[str, ...]) -> None:
    assert words[1] == "--prefix"
    package = json.loads((ROOT / words[2] / "package.json").read_text())
    assert words[3] == "ci" or words[words.index("run") + 1 if "run" in words else 3] in package["scripts"]


@pytest.mark.parametrize("words", of("grpcurl"), ids=" ".join)
def test_a_method_called_with_grpcurl_exists(words: tuple[str, ...]) -> None:
    files = (coordinator_pb2, learner_pb2, reward_pb2, rollout_pb2)
    services = [service for file in files for service in file.DESCRIPTOR.services_by_name.values()]
    assert words[-1] in {"list", *(f"{s.full_name}/{method.name}" for s in services for method in s.methods)}


@pytest.mark.parametrize("words", of("docker", "compose"), ids=" ".join)
def test_a_compose_command_names_services_and_files_that_exist(words: tuple[str, ...]) -> None:
    services = set(yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"])
    assert {name.partition("=")[0] for flag, name in itertools.pairwise(words) if flag == "--scale"} <= services
    assert all((ROOT / name).is_file() for flag, name in itertools.pairwise(words) if flag == "-f")
    assert {"up", "run", "exec", "cp", "down"} & set(words)
    assert words[2] not in ("run", "exec") or services & set(words)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_one_that_is_checked_and_sets_known_keys(words: tuple[str, ...]) -> None:
    programs = ("sluice", "make", "npm", "grpcurl", "source", "docker")
    assert words[0] in programs or words[:2] == ("python", "scripts/api_docs.py") or words[1] == "-m"
    settings = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
    assert {setting.partition("=")[0] for setting in settings} <= set(schema_keys())


def test_there_are_commands_to_check() -> None:
    assert len(of("sluice")) > 10
    assert of("python", "-m", "services.rollout")
