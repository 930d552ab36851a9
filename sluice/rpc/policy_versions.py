"""Policy versions to and from protobuf."""

from sluice.policy_version import PolicyVersion
from sluice.v1 import common_pb2


def version_to_proto(version: PolicyVersion) -> common_pb2.PolicyVersion:
    """PolicyVersion -> wire."""
    return common_pb2.PolicyVersion(lineage=version.lineage, number=version.number)


def version_from_proto(message: common_pb2.PolicyVersion) -> PolicyVersion:
    """Wire -> PolicyVersion."""
    return PolicyVersion(lineage=message.lineage, number=message.number)
