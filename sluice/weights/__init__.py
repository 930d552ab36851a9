"""How one version's weights get from the learner to a rollout: packed, digested, sent by membership epoch, verified.

`manifest` and `snapshot` describe one version's bytes, `sender` and `receiver` move the bytes in threads of their own over
the collectives of `backends`, `files` moves them where no collective reaches, `wire` converts manifests to protobuf.
`delta` is one version's bytes as the difference from another's.
`adapters` and `merging` are for LoRA. `backends`, `merging` and `tensors` import torch; the other modules do not.
"""
