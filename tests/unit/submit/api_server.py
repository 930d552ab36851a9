"""As much of a Kubernetes API server as kubectl needs to find, make, change and delete objects. No controller acts on them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

_KINDS: Mapping[str, Mapping[str, str]] = {
    "": {
        "configmaps": "ConfigMap",
        "namespaces": "Namespace",
        "persistentvolumeclaims": "PersistentVolumeClaim",
        "pods": "Pod",
        "secrets": "Secret",
        "serviceaccounts": "ServiceAccount",
        "services": "Service",
    },
    "apps": {"deployments": "Deployment"},
    "batch": {"jobs": "Job"},
    "networking.k8s.io": {"networkpolicies": "NetworkPolicy"},
    "rbac.authorization.k8s.io": {"roles": "Role", "rolebindings": "RoleBinding"},
}
_VERBS = ["create", "delete", "get", "list", "patch", "update"]
_DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


@dataclass(kw_only=True, slots=True)
class Cluster:
    """What the server holds."""

    server: str = ""
    minor: str = "37"
    """The version is 1.MINOR."""
    objects: dict[str, Any] = field(default_factory=dict)
    """By path: /apis/batch/v1/namespaces/team/jobs/demo-1."""
    logs: dict[str, list[str]] = field(default_factory=dict)
    """Lines by the path of a pod."""
    refused: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    """What is answered to `GET PATH`, or to the making of an object, `POST PATH`: code, reason, message."""

    def add(self, path: str, **content: Any) -> None:
        """An object that somebody made."""
        self.objects[path] = {"metadata": {"name": path.rpartition("/")[2]}, **content}

    def names(self, resource: str) -> set[str]:
        """Of the objects that there are."""
        return {path.rpartition("/")[2] for path in self.objects if path.split("/")[-2] == resource}


@contextmanager
def api_server() -> Iterator[Cluster]:
    """Serves an empty cluster on a free port of this machine."""
    cluster = Cluster()

    class Handler(_Handler):
        there = cluster

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        cluster.server = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield cluster
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    there: Cluster

    def do_GET(self) -> None:
        path, query = self._asked()
        if path in ("/api", "/apis"):
            self._say(_discovery(core=path == "/api"), kind=_DISCOVERY)
        elif path == "/version":
            self._say({"major": "1", "minor": self.there.minor, "gitVersion": f"v1.{self.there.minor}.0"})
        elif path.startswith("/openapi/v3"):
            self._say(_openapi(path.removeprefix("/openapi/v3")))
        elif path.endswith("/log"):
            self._write("".join(self.there.logs[path.removesuffix("/log")]).encode(), kind="text/plain")
        elif path.count("/") == (5 if path.startswith("/api/") else 6):
            self._say(self._listed(path, query.get("labelSelector", "")))
        else:
            self._object(path)

    def do_POST(self) -> None:
        path, query = self._asked()
        made = self._body()
        path = f"{path}/{made['metadata']['name']}"
        if "dryRun" in query:
            self._say(made, code=201)
        elif not self._refused(f"POST {path}"):
            self.there.objects[path] = made
            self._say(made, code=201)

    def do_PATCH(self) -> None:
        path, query = self._asked()
        whole = path.removesuffix("/scale")
        changed = _merged(self.there.objects[whole], self._body())
        if "dryRun" not in query:
            self.there.objects[whole] = changed
        self._say(_scale(changed) if whole != path else changed)

    def do_DELETE(self) -> None:
        path, _ = self._asked()
        self._body()
        if self.there.objects.pop(path, None) is None:
            self._missing(path)
        else:
            self._say({"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def _asked(self) -> tuple[str, dict[str, str]]:
        asked = urlsplit(self.path)
        return asked.path, {name: values[0] for name, values in parse_qs(asked.query).items()}

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")

    def _listed(self, path: str, selector: str) -> Any:
        wanted = dict(part.split("=") for part in selector.split(",") if part)
        group, resource = path.split("/")[2] if path.startswith("/apis/") else "", path.rpartition("/")[2]
        found = [
            one
            for name, one in self.there.objects.items()
            if name.rpartition("/")[0] == path and wanted.items() <= one["metadata"].get("labels", {}).items()
        ]
        version = f"{group}/v1".lstrip("/")
        return {"kind": f"{_KINDS[group][resource]}List", "apiVersion": version, "metadata": {}, "items": found}

    def _object(self, path: str) -> None:
        found = self.there.objects.get(path.removesuffix("/scale"))
        if self._refused(f"GET {path}"):
            pass
        elif found is None:
            self._missing(path)
        else:
            self._say(_scale(found) if path.endswith("/scale") else found)

    def _refused(self, call: str) -> bool:
        if call not in self.there.refused:
            return False
        self._fail(*self.there.refused[call])
        return True

    def _missing(self, path: str) -> None:
        resource, name = path.split("/")[-2:]
        self._fail(404, "NotFound", f'{resource} "{name}" not found')

    def _fail(self, code: int, reason: str, message: str) -> None:
        said = {"reason": reason, "message": message, "code": code}
        self._say({"kind": "Status", "apiVersion": "v1", "status": "Failure", **said}, code=code)

    def _say(self, tree: Any, *, code: int = 200, kind: str = "application/json") -> None:
        self._write(json.dumps(tree).encode(), code=code, kind=kind)

    def _write(self, content: bytes, *, code: int = 200, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _merged(into: Any, change: Any) -> Any:
    """A merge patch: what is null goes, lists are replaced."""
    if not (isinstance(into, dict) and isinstance(change, dict)):
        return change
    merged = into | {name: _merged(into.get(name), value) for name, value in change.items()}
    return {name: value for name, value in merged.items() if value is not None}


def _scale(deployment: Any) -> Any:
    replicas = deployment["spec"].get("replicas", 1)
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": deployment["metadata"],
        "spec": {"replicas": replicas},
    }


def _discovery(*, core: bool) -> Any:
    groups = [(group, kinds) for group, kinds in _KINDS.items() if core == (group == "")]
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": [
            {
                "metadata": {"name": group},
                "versions": [{"version": "v1", "resources": [_resource(group, *kind) for kind in kinds.items()]}],
            }
            for group, kinds in groups
        ],
    }


def _resource(group: str, plural: str, kind: str) -> Any:
    found: dict[str, Any] = {
        "resource": plural,
        "responseKind": {"group": group, "version": "v1", "kind": kind},
        "scope": "Cluster" if kind == "Namespace" else "Namespaced",
        "singularResource": kind.lower(),
        "verbs": _VERBS,
    }
    if kind == "Deployment":
        scale = {"group": "autoscaling", "version": "v1", "kind": "Scale"}
        found["subresources"] = [{"subresource": "scale", "responseKind": scale, "verbs": ["get", "patch", "update"]}]
    return found


def _openapi(path: str) -> Any:
    """What tells kubectl that the server itself validates fields."""
    if not path:
        groups = {"api/v1" if not group else f"apis/{group}/v1" for group in _KINDS}
        return {"paths": {group: {"serverRelativeURL": f"/openapi/v3/{group}"} for group in groups}}
    group = "" if path == "/api/v1" else path.split("/")[2]
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in ("dryRun", "fieldValidation")]
    paths = {
        f"{path}/namespaces/{{namespace}}/{plural}/{{name}}": {
            "patch": {
                "parameters": parameters,
                "responses": {},
                "x-kubernetes-group-version-kind": {"group": group, "version": "v1", "kind": kind},
            }
        }
        for plural, kind in _KINDS[group].items()
    }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1"}, "paths": paths}
