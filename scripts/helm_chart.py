"""Writes deploy/helm from the manifests of `sluice submit --on kubernetes`, so that both give the same objects.

`python scripts/helm_chart.py`; a test keeps the chart so. A field of the manifests becomes an expression of Helm over the
values, which are the recipe.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sluice import __version__  # noqa: E402 - the path comes first
from sluice.config.docs import leaves  # noqa: E402
from sluice.launch.submit.kubernetes_text import manifest  # noqa: E402
from sluice.launch.submit.template import fill  # noqa: E402

CHART = ROOT / "deploy" / "helm"
MADE = "Made by `python scripts/helm_chart.py`; a test keeps it so."

KEYS = (
    *("launch.engine", "launch.learner_nnodes", "launch.learner_nproc_per_node", "launch.rollout_replicas"),
    *("launch.reward_replicas", "launch.grace_s", "rollout.tensor_parallel_size", "rollout.threads"),
)
"""What the chart itself reads of a recipe, beside all of `kubernetes`."""
NOT_HELMS = ("kubernetes.context", "kubernetes.namespace")
"""Helm's own flags say these."""

_RECIPE, _KUBERNETES = ".Values.recipe", ".Values.recipe.kubernetes"
_RUN_DIR = '(.Values.runDir | default (printf "/data/runs/%s" .Release.Name))'
_RAY = f'eq {_RECIPE}.launch.engine "ray"'
_SEVERAL = f"gt (int {_RECIPE}.launch.learner_nnodes) 1"

TEMPLATES: Mapping[str, str] = {
    "recipe": "",
    "claim": f"not {_KUBERNETES}.claim",
    **dict.fromkeys(("account", "service", "network", "rollout", "reward"), f"not ({_RAY})"),
    "job": f"not (or ({_RAY}) ({_SEVERAL}))",
    "jobset": f"and (not ({_RAY})) ({_SEVERAL})",
    "rayjob": _RAY,
}
"""The files, each with the condition under which it is there."""


def fields() -> dict[str, str]:
    """Every field of the manifests as an expression; those that stand alone in a line are `alone`."""

    def image(role: str) -> str:
        accelerator = "" if role == "reward" else f"{{{{ if {_KUBERNETES}.gpu }}}}-cuda{{{{ end }}}}"
        return f"{{{{ {_KUBERNETES}.images }}}}{role}{accelerator}:{{{{ {_KUBERNETES}.tag }}}}"

    def gpus(number: str) -> str:
        limits = f'{{"limits": {{ {{{{ {_KUBERNETES}.gpu | toJson }}}}: {{{{ int {number} }}}} }}}}'
        return f"{{{{ if {_KUBERNETES}.gpu }}}}{limits}{{{{ else }}}}{{}}{{{{ end }}}}"

    whole = {
        "machines": f"int {_RECIPE}.launch.learner_nnodes",
        "more_machines": f"sub (int {_RECIPE}.launch.learner_nnodes) 1",
        "ranks": f"int {_RECIPE}.launch.learner_nproc_per_node",
        "rollout_replicas": _first(f"{_RECIPE}.launch.rollout_replicas"),
        "reward_replicas": f"int {_RECIPE}.launch.reward_replicas",
        "rollout_threads": f"int {_RECIPE}.rollout.threads",
        "grace_s": f"add (int {_RECIPE}.launch.grace_s) 20",
        "control_grace_s": f"add (mul 2 (int {_RECIPE}.launch.grace_s)) 20",
        "name": ".Release.Name",
        "run_dir": _RUN_DIR,
        "run_id": f"base {_RUN_DIR}",
        "claim": f'{_KUBERNETES}.claim | default (printf "%s-data" .Release.Name)',
        "claim_size": f"{_KUBERNETES}.claim_size",
        "storage_class": f"{_KUBERNETES}.storage_class | toJson",
        "access_mode": f"{_KUBERNETES}.access_mode",
        "credentials": f"{_KUBERNETES}.credentials",
        "prepare": f"{_KUBERNETES}.prepare | toJson",
    }
    return {
        **{name: f"{{{{ {expression} }}}}" for name, expression in whole.items()},
        **{f"image_{role}": image(role) for role in ("launcher", "learner", "rollout", "reward", "ray")},
        "learner_resources": gpus(f"{_RECIPE}.launch.learner_nproc_per_node"),
        "rollout_resources": gpus(f"{_RECIPE}.rollout.tensor_parallel_size"),
    }


_ALONE: Mapping[str, str] = {
    "recipe": 'include "sluice.recipe" .',
    **{part: f'include "sluice.{part}" .' for part in ("control_pod", "machine_pod", "ray_pod", "ray_container")},
}


def _first(replicas: str) -> str:
    """The number of services at the start, of a number, `auto` or {min, max}: fromJson makes a mapping of anything."""
    number = f'(eq (toString {replicas}) "auto" | ternary 1 {replicas})'
    return f'int (kindIs "map" {replicas} | ternary ({replicas} | toJson | fromJson).min {number})'


def files() -> Iterator[tuple[str, str]]:
    """Every file of the chart with its text."""
    known = fields()
    for name, condition in TEMPLATES.items():
        text = _filled(manifest(f"{name}.yaml"), known)
        guard = "" if condition else _GUARD
        body = f"{{{{- if {condition} }}}}\n{text}{{{{- end }}}}\n" if condition else text
        yield f"templates/{name}.yaml", f"{{{{/* {MADE} */}}}}\n{guard}{body}"
    parts = ("control_pod", "machine_pod", "ray_pod", "ray_container")
    defined = [
        f'{{{{- define "sluice.{part}" -}}}}\n{_filled(manifest(part.replace("_", "-") + ".yaml"), known)}{{{{- end }}}}\n'
        for part in parts
    ]
    yield "templates/_pods.tpl", "\n".join([f"{{{{/* {MADE} */}}}}", _N, *defined])
    yield "values.yaml", "\n".join(_values()) + "\n"
    yield "Chart.yaml", _CHART


_GUARD = f"""\
{{{{- $_ := required "recipe.model.path: must be given" (dig "model" "path" "" {_RECIPE}) }}}}
{{{{- if gt (len .Release.Name) 45 }}}}{{{{ fail "the release's name must have at most 45 letters" }}}}{{{{ end }}}}
"""

_N = """\
{{- /* YAML 1.1, in which Helm reads its values, takes the key n for false. */}}
{{- define "sluice.n" }}
{{- if hasKey . "false" }}{{ $_ := set . "n" (dig "n" (get . "false") .) }}{{ $_ := unset . "false" }}{{ end }}
{{- end }}
{{- define "sluice.recipe" -}}
{{- $recipe := deepCopy .Values.recipe }}
{{- range $section := list (dig "rollout" dict $recipe) (dig "eval" dict $recipe) }}{{ include "sluice.n" $section }}{{ end }}
{{- range $name, $set := dig "eval" "sets" dict $recipe }}{{ include "sluice.n" $set }}{{ end }}
{{- toYaml $recipe }}
{{- end }}
"""

_CHART = f"""\
# {MADE}
apiVersion: v2
name: sluice
description: A run of Sluice, DAPO training of language models as an asynchronous service system
version: {__version__}
appVersion: "{__version__}"
type: application
"""


def _filled(text: str, known: Mapping[str, str]) -> str:
    """The manifest with expressions for fields; a field alone in its line keeps the line's indentation."""
    lines = []
    for line in text.splitlines():
        name = line.strip().removeprefix("@{").removesuffix("}")
        if name in _ALONE and line.strip() == f"@{{{name}}}":
            line = f"{{{{- {_ALONE[name]} | nindent {len(line) - len(line.lstrip())} }}}}"
        lines.append(fill(line, known))
    return "\n".join(lines) + "\n"


def _values() -> Iterator[str]:
    yield f"# {MADE}"
    yield "# The recipe: every key of docs/configuration.md may stand here. These are what the chart itself reads."
    yield "#   (echo recipe:; sed 's/^/  /' RECIPE.yaml) | helm install RUN deploy/helm -f -"
    yield "runDir: null # default: /data/runs/RELEASE"
    yield "recipe:"
    section = ""
    for key, info in leaves():
        head, _, name = key.rpartition(".")
        if (key in KEYS or head == "kubernetes") and key not in NOT_HELMS:
            if head != section:
                yield f"  {head}:"
                section = head
            yield f"    # {info.description}"
            yield f"    {name}: {json.dumps(info.get_default(call_default_factory=True))}"


def main() -> None:
    """Writes the chart."""
    for name, text in files():
        path = CHART / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
