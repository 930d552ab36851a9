"""`kubernetes`: a run's pods."""

from typing import Literal

from pydantic import Field

from sluice.config.schema.section import Section

_LABEL = r"^[a-z][a-z0-9]*(-+[a-z0-9]+)*$"
_TAG = "0.1.0"
"""sluice.__version__, which a test holds against it: the package's root imports the client, and the schema lies below."""
_SIZE = r"^[1-9][0-9]*(Mi|Gi|Ti)$"


class KubernetesConfig(Section):
    """A run's pods: for `sluice submit` on Kubernetes and the chart deploy/helm, and for nothing else (docs/clusters.md)."""

    context: str | None = Field(
        default=None, min_length=1, description="context of the kubeconfig; default: the current one"
    )
    namespace: str | None = Field(
        default=None, pattern=_LABEL, max_length=63, description="where the pods run; default: the context's"
    )
    images: str = Field(
        default="sluice-",
        pattern=r"^[a-z0-9][a-z0-9._/:-]*$",
        description="what stands before ROLE in the names of the images, such as registry.example/team/sluice-",
    )
    tag: str = Field(
        default=_TAG, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*$", max_length=128, description="tag of the images"
    )
    gpu: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9.-]+/[A-Za-z0-9._-]+$",
        description="the resource that is one GPU, nvidia.com/gpu: the learner's pods take one a rank, a rollout "
        "rollout.tensor_parallel_size, and their images end in -cuda; default: no pod takes a GPU",
    )
    claim: str | None = Field(
        default=None,
        pattern=_LABEL,
        max_length=253,
        description="a PersistentVolumeClaim that is there, mounted as /data: run directories lie in /data/runs; default: "
        "one is made for the run, RUN-data",
    )
    claim_size: str = Field(default="100Gi", pattern=_SIZE, description="size of the claim that is made")
    storage_class: str | None = Field(
        default=None, min_length=1, description="storage class of the claim that is made; default: the cluster's"
    )
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = Field(
        default="ReadWriteMany",
        description="of the claim that is made; ReadWriteOnce is enough where all pods run on one node",
    )
    credentials: str = Field(
        default="sluice",
        pattern=_LABEL,
        max_length=200,
        description="the Secrets CREDENTIALS-ROLE hold what `sluice certs` or `sluice tokens` made for each role",
    )
    prepare: str = Field(
        default="true",
        min_length=1,
        description="a shell line that runs first in the control pod, such as a download of the model into /data/models",
    )
