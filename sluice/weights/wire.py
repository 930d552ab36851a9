"""Manifests and payloads to and from protobuf."""

from typing import cast

from sluice.rpc.policy_versions import version_from_proto, version_to_proto
from sluice.v1 import common_pb2
from sluice.weights import payload as payloads
from sluice.weights.manifest import Manifest, TensorSpec, check
from sluice.weights.payload import DIGEST_BYTES, Encoding, Payload


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


def payload_to_proto(payload: Payload) -> common_pb2.WeightPayload:
    """Payload -> wire."""
    return common_pb2.WeightPayload(
        encoding=payload.encoding,
        total_bytes=payload.total_bytes,
        bucket_bytes=payload.bucket_bytes,
        bucket_digests=b"".join(payload.bucket_digests),
        base=version_to_proto(payload.base) if payload.base else None,
        base_digest=payload.base_digest,
    )


def payload_from_proto(message: common_pb2.WeightPayload, manifest: Manifest) -> Payload:
    """Wire -> Payload. Raises TransferError when the message cannot describe the bytes of the manifest's version."""
    packed = message.bucket_digests
    payload = Payload(
        encoding=cast(Encoding, message.encoding),  # checked below
        total_bytes=message.total_bytes,
        bucket_bytes=message.bucket_bytes,
        bucket_digests=tuple(packed[start : start + DIGEST_BYTES] for start in range(0, len(packed), DIGEST_BYTES)),
        base=version_from_proto(message.base) if message.HasField("base") else None,
        base_digest=message.base_digest,
    )
    payloads.check(payload, manifest)
    return payload
