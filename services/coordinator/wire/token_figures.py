"""What a learner tells of the tokens of one group, from the wire."""

import numpy as np

from sluice.errors import InvalidRequest
from sluice.rpc.requests import name
from sluice.run_dir.token_figures import TokenFigures, unpack_figures
from sluice.v1 import coordinator_pb2 as pb


def figures_from(message: pb.TokenFigures) -> TokenFigures:
    """Wire -> core. Raises InvalidRequest for arrays of two lengths, and for values that no token has."""
    log_ratios = unpack_figures(message.log_ratios, field="commit: example.log_ratios")
    entropies = unpack_figures(message.entropies, field="commit: example.entropies")
    if len(log_ratios) != len(entropies):
        raise InvalidRequest(
            f"commit: example: must have one log ratio and one entropy a token, got {len(log_ratios)} and {len(entropies)}"
        )
    if (entropies < LOWEST_ENTROPY).any():
        raise InvalidRequest(f"commit: example.entropies: must be >= 0, got {np.nanmin(entropies):g}")
    group_id = name(message.group_id, field="commit: example.group_id")
    return TokenFigures(group_id=group_id, log_ratios=log_ratios, entropies=entropies)


LOWEST_ENTROPY = -1e-2
"""Nats. An entropy is a difference of sums of rounded numbers, so that of a token that is certain may come out below 0."""
