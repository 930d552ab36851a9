"""Policy versions to and from protobuf."""

from sluice.errors import InvalidRequest
from sluice.policy_version import PolicyVersion
from sluice.v1 import common_pb2

_LONGEST_LINEAGE = 32
_LARGEST_NUMBER = 2**53
"""A double, as in JSON and in metrics, holds every integer up to this one."""


def version_to_proto(version: PolicyVersion) -> common_pb2.PolicyVersion:
    """PolicyVersion -> wire."""
    return common_pb2.PolicyVersion(lineage=version.lineage, number=version.number)


def version_from_proto(message: common_pb2.PolicyVersion) -> PolicyVersion:
    """Wire -> PolicyVersion. Raises InvalidRequest for a lineage that is no short word, or a number that is no step."""
    if len(message.lineage) > _LONGEST_LINEAGE or not (message.lineage.isalnum() or not message.lineage):
        raise InvalidRequest(
            f"version: lineage must be at most {_LONGEST_LINEAGE} letters, got {message.lineage[:40]!r}"
        )
    if not -1 <= message.number <= _LARGEST_NUMBER:
        raise InvalidRequest(f"version: number must be -1 to {_LARGEST_NUMBER}, got {message.number}")
    return PolicyVersion(lineage=message.lineage, number=message.number)
