"""How one version's weights get from the learner to a rollout: packed, digested, sent by membership epoch, verified.

`manifest` and `snapshot` describe the bytes of one version, `payload` what travels of them to one receiver, `cargo` holds
what has arrived. `sender` (of the learner) and `receiver` move cargoes in the threads of `links` over the collectives of
`backends`, `files` moves them where no collective reaches, `wire` converts descriptions to protobuf.
`adapters` and `merging` are for LoRA. `backends`, `merging` and `tensors` import torch; the other modules do not.
"""
