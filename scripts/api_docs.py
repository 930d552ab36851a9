"""Writes docs/api.md from protos/, or with --check says whether it is current: services, RPCs and messages with comments."""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc_tools
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)
from grpc_tools import protoc

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
PACKAGE = "sluice.v1"

INTRODUCTION = f"""\
# API

Made by `python scripts/api_docs.py` from `protos/sluice/v1/*.proto`; a test keeps it so.

Package `{PACKAGE}`. Every server has gRPC health checking and reflection, so that `grpcurl` needs no files:

```sh
grpcurl -plaintext 127.0.0.1:18050 list
grpcurl -plaintext 127.0.0.1:18050 {PACKAGE}.CoordinatorService/GetStatus
```

On 127.0.0.1 nobody has to show anything; anywhere else a call needs a certificate or a token, and each method answers
certain roles only ([security.md](security.md)). Bulk arrays are packed little-endian `bytes` (int32 token ids, float32
log-probabilities). From Python, `sluice.Client` and `sluice.AsyncClient` are the coordinator's API
([client.md](client.md)).

An error is one gRPC status with a message that says where, the rule, the value and the fix:

| status | when |
|---|---|
| INVALID_ARGUMENT | the call can never be served as it is |
| FAILED_PRECONDITION | the callee is in the wrong state for it |
| ABORTED | the caller was replaced by a newer process (a fencing token lost) |
| UNAUTHENTICATED | the caller did not show who it is, or not credibly |
| PERMISSION_DENIED | the caller's role may not do this |
| RESOURCE_EXHAUSTED | back-pressure: later, elsewhere, or less (`grpc-retry-pushback-ms` says when, if known) |
| UNAVAILABLE | cannot be reached now: try again |
| DEADLINE_EXCEEDED | a deadline passed; the message names who waited for whom |
| NOT_FOUND | nothing under this name |
| DATA_LOSS | a weight transfer failed or its bytes did not verify |
| INTERNAL | a bug; the server's log has the traceback |
"""

_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6  # field numbers of FileDescriptorProto, of which comment paths are made
_CHILDREN = 2  # fields of a message, values of an enum, methods of a service

_SCALARS = {
    FieldDescriptorProto.TYPE_DOUBLE: "double",
    FieldDescriptorProto.TYPE_INT32: "int32",
    FieldDescriptorProto.TYPE_INT64: "int64",
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_STRING: "string",
    FieldDescriptorProto.TYPE_BYTES: "bytes",
}

Path_ = tuple[int, ...]


def render_markdown() -> str:
    """docs/api.md: files with a service first, then what they share."""
    files = sorted(read_protos(), key=lambda file: (not file.service, file.name))
    return "\n".join([INTRODUCTION, *(line for file in files for line in _Page(file).lines())])


def read_protos() -> list[FileDescriptorProto]:
    """Every file under protos/, comments included."""
    sources = [str(path.relative_to(ROOT / "protos")) for path in sorted((ROOT / "protos").rglob("*.proto"))]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "set"
        google = Path(grpc_tools.__file__).parent / "_proto"
        flags = [f"-I{ROOT / 'protos'}", f"-I{google}", "--include_source_info", f"--descriptor_set_out={out}"]
        if code := protoc.main(["protoc", *flags, *sources]):
            sys.exit(f"protoc ended with code {code}")
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


class _Page:
    """The part of one file."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(place.path): " ".join((place.leading_comments or place.trailing_comments).split())
            for place in file.source_code_info.location
        }

    def lines(self) -> Iterator[str]:
        """Services, messages, enums, in the order of the file."""
        file = self._file
        title = ", ".join(service.name for service in file.service) or "Shared messages"
        yield from (f"## {title}", "", f"`protos/{file.name}`", "")
        for index, service in enumerate(file.service):
            yield from ("| RPC | request | response | what it does |", "|---|---|---|---|")
            for position, method in enumerate(service.method):
                comment = self._comment(_SERVICES, index, _CHILDREN, position)
                yield f"| `{method.name}` | {_name(method.input_type)} | {_response(method)} | {comment} |"
            yield ""
        for index, message in enumerate(file.message_type):
            yield from self._message(message, (_MESSAGES, index))
        for index, enum in enumerate(file.enum_type):
            yield from self._enum(enum, (_ENUMS, index))

    def _message(self, message: DescriptorProto, path: Path_) -> Iterator[str]:
        rows = [
            f"| {field.number} | `{field.name}` | {_type(field, message)} | {self._comment(*path, _CHILDREN, index)} |"
            for index, field in enumerate(message.field)
        ]
        table = ["| # | field | type | meaning |", "|---|---|---|---|", *rows] if rows else ["No fields."]
        yield from (f"### {message.name}", "", *self._paragraph(path), *table, "")

    def _enum(self, enum: EnumDescriptorProto, path: Path_) -> Iterator[str]:
        rows = [
            f"| {value.number} | `{value.name}` | {self._comment(*path, _CHILDREN, index)} |"
            for index, value in enumerate(enum.value)
        ]
        yield from (f"### {enum.name}", "", *self._paragraph(path))
        yield from ("| # | value | meaning |", "|---|---|---|", *rows, "")

    def _paragraph(self, path: Path_) -> Sequence[str]:
        return (text, "") if (text := self._comment(*path)) else ()

    def _comment(self, *path: int) -> str:
        return self._comments.get(path, "").replace("|", "\\|")


def _response(method: MethodDescriptorProto) -> str:
    return f"{'stream of ' if method.server_streaming else ''}{_name(method.output_type)}"


def _type(field: FieldDescriptorProto, message: DescriptorProto) -> str:
    plain = _SCALARS.get(field.type) or _name(field.type_name)
    entry = next((nested for nested in message.nested_type if field.type_name.endswith(f".{nested.name}")), None)
    if entry is not None and entry.options.map_entry:
        return f"map of {' to '.join(_SCALARS[part.type] for part in entry.field)}"
    one_of = f", one of `{message.oneof_decl[field.oneof_index].name}`" if field.HasField("oneof_index") else ""
    return f"{'repeated ' if field.label == FieldDescriptorProto.LABEL_REPEATED else ''}{plain}{one_of}"


def _name(qualified: str) -> str:
    """`.sluice.v1.Group` -> a link to its heading; a name of another package as it is."""
    if not qualified.startswith(f".{PACKAGE}."):
        return qualified.removeprefix(".")
    name = qualified.removeprefix(f".{PACKAGE}.")
    return f"[{name}](#{name.lower()})"


def main() -> None:
    """Writes or checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when the page is stale")
    if not parser.parse_args().check:
        PAGE.write_text(render_markdown(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != render_markdown():
        sys.exit("docs/api.md differs from protos/; run `python scripts/api_docs.py` and commit")


if __name__ == "__main__":
    main()
