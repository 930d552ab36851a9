"""Manifests to and from protobuf."""

from sluice.rpc.policy_versions import version_from_proto, version_to_proto
from sluice.v1 import common_pb2
from sluice.weights.manifest import Manifest, TensorSpec, check


def manifest_to_proto(manifest: Manifest) -> common_pb2.WeightManifest:
    """Manifest -> wire."""
    return common_pb2.WeightManifest(
        version=version_to_proto(manifest.version),
        tensors=[
            common_pb2.TensorSpec(
                name=spec.name,
                dtype=spec.dtype,
                shape=spec.shape,
                offset_bytes=spec.offset_bytes,
                size_bytes=spec.size_bytes,
            )
            for spec in manifest.tensors
        ],
        total_bytes=manifest.total_bytes,
        bucket_bytes=manifest.bucket_bytes,
        digest=manifest.digest,
    )


def manifest_from_proto(message: common_pb2.WeightManifest) -> Manifest:
    """Wire -> Manifest. Raises TransferError when the message's offsets and sizes contradict its names and shapes."""
    manifest = Manifest(
        version=version_from_proto(message.version),
        tensors=tuple(
            TensorSpec(
                name=spec.name,
                dtype=spec.dtype,
                shape=tuple(spec.shape),
                offset_bytes=spec.offset_bytes,
                size_bytes=spec.size_bytes,
            )
            for spec in message.tensors
        ),
        total_bytes=message.total_bytes,
        bucket_bytes=message.bucket_bytes,
        digest=message.digest,
    )
    check(manifest)
    return manifest
