"""Nothing that ships turns bytes into objects by running code of theirs, and nothing is read as text into a shell."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice.config.yaml_text import parse_yaml
from sluice.errors import ConfigError

ROOT = Path(__file__).parents[2]
FOLDERS = ("sluice", "services", "benchmarks", "scripts")

MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "jsonpickle"}
FORBIDDEN = {
    *("eval", "exec", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen", "torch.save"),
    *("torch.hub.load", "pandas.read_pickle", "send_object_list", "broadcast_object_list", "all_gather_object"),
    *("gather_object", "scatter_object_list", "recv_object_list"),
    *("multiprocessing.Pipe", "multiprocessing.Queue", "multiprocessing.SimpleQueue"),
}


def problems(source: str) -> Iterator[str]:
    """What a file does that it must not, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").partition(".")[0]}
        elif isinstance(node, ast.Call):
            yield from _call(node)
            continue
        else:
            continue
        yield from (f"{node.lineno}: imports {name}" for name in names & MODULES)


def _call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    told = {keyword.arg: keyword.value for keyword in node.keywords}
    if name in FORBIDDEN or ("object" in name and name.rpartition(".")[2] in FORBIDDEN):
        yield f"{node.lineno}: calls {name}"
    if name == "torch.load" and not _says(told, "weights_only", True):
        yield f"{node.lineno}: calls torch.load without weights_only=True"
    if "allow_pickle" in told and not _says(told, "allow_pickle", False):
        yield f"{node.lineno}: allows pickle"
    if name == "yaml.load" and ("Loader" not in told or ast.unparse(told["Loader"]) != "_Loader"):
        yield f"{node.lineno}: calls yaml.load with another loader than that of sluice/config/yaml_text.py"
    if "shell" in told and not _says(told, "shell", False):
        yield f"{node.lineno}: starts a shell"
    if "trust_remote_code" in told:
        yield f"{node.lineno}: runs code that came with a model"


def _says(told: dict[str | None, ast.expr], name: str, value: bool) -> bool:
    given = told.get(name)
    return isinstance(given, ast.Constant) and given.value is value


def files() -> list[Path]:
    """Every Python file but the generated stubs and what is downloaded."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
    return [path for path in found if "sluice/v1" not in path.as_posix()]


def test_no_file_unpickles_evaluates_or_starts_a_shell() -> None:
    assert len(files()) > 200
    found = {str(path.relative_to(ROOT)): list(problems(path.read_text(encoding="utf-8"))) for path in files()}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import dumps",
        "import torch\ntorch.load('x')",
        "torch.load('x', weights_only=False)",
        "np.load('x', allow_pickle=True)",
        "eval('1')",
        "yaml.load(text, Loader=yaml.UnsafeLoader)",
        "dist.broadcast_object_list(x)",
        "subprocess.run('ls', shell=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_what_must_not_be_is_found(source: str) -> None:
    assert list(problems(source))


@pytest.mark.parametrize(
    "source", ["torch.load('x', weights_only=True)", "np.load('x', allow_pickle=False)", "np.load('x')", "json.load(f)"]
)
def test_what_may_be_is_left_alone(source: str) -> None:
    assert not list(problems(source))


def test_a_recipe_cannot_make_objects() -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_yaml("run: !!python/object/apply:os.system ['true']", where="recipe")
