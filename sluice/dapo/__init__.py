"""DAPO (Yu et al. 2025, arXiv:2503.14476) as pure functions, one idea a file.

    eq. 8, 10   loss               the clipped token loss, decoupled clip ("clip-higher")
    eq. 9       advantage          rewards of one group relative to that group
    eq. 11      dynamic_sampling   which groups carry a learning signal
    eq. 12      aggregation        how token losses are weighted into one loss
    eq. 13      overlong           the soft punishment of long answers
    -           correction         what may be done about stale tokens beyond the clip (not in the paper, off by default)
    -           trust_region       masks by probability in place of the clip (not in the paper, off by default)
    -           soft_gate          a gate in place of the clip (not in the paper, off by default)
    -           step_scale         shorter steps where few samples outweigh the others (not in the paper, off by default)
    -           staleness          how old trained tokens may get (the asynchronous part, not in the paper)
    -           mismatch           how far learner and behaviour policy are apart (diagnostics, not in the paper)

Arrays in, arrays out: no clock, no randomness, no network. Only the losses and `correction` import torch, and nothing is
re-exported here, so that the coordinator and the reward service can use the rest without it. docs/losses.md lists all losses,
advantages and corrections with what each keeps or gives up of DAPO.
"""
