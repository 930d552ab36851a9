"""How one version's weights get from the learner to a rollout: packed, digested, sent by membership epoch, verified.

`manifest` and `snapshot` describe one version's bytes, `payload` what travels of them to one receiver, `cargo` holds a
payload's bytes as they arrive. `sender` (of the learner) and `receiver` move cargoes in the threads of `links` over the
collectives of `backends`, `files` moves them where no collective reaches, `wire` converts descriptions to protobuf. `delta`
is a version's bytes as the difference from another's; `deltas` makes and keeps them, `held` is what a rollout applies them to.
`adapters` and `merging` are for LoRA. `backends`, `merging` and `tensors` import torch; the other modules do not.
"""
