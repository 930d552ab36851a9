"""Policy versions to and from protobuf."""

import functools

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
    return _version(message.lineage, message.number)


@functools.lru_cache(maxsize=64)
def _version(lineage: str, number: int) -> PolicyVersion:
    """Every span of every sample names one of a few versions."""
    if len(lineage) > _LONGEST_LINEAGE or not (lineage.isalnum() or not lineage):
        raise InvalidRequest(f"version: lineage must be at most {_LONGEST_LINEAGE} letters, got {lineage[:40]!r}")
    if not -1 <= number <= _LARGEST_NUMBER:
        raise InvalidRequest(f"version: number must be -1 to {_LARGEST_NUMBER}, got {number}")
    return PolicyVersion(lineage=lineage, number=number)
