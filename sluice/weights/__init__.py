"""How one version's weights get from the learner to a rollout: packed, digested, sent by membership epoch, verified.

`manifest` and `snapshot` describe the bytes of one version, `payload` what travels of them to one receiver, `cargo` holds what
has arrived. `sender` (of the learner) and `receiver` move cargoes in the threads of `links` over the collectives of `backends`;
over gRPC `offers`, `streams` and `pieces` send and `fetching` receives, and `carrier` says when; `snapshot_files` moves
snapshots where neither reaches. `delta` is the bytes of a version as the difference from another version; `deltas` makes and
keeps differences, `held` is what a rollout applies them to. `wire` converts descriptions to protobuf. `staging` is the memory
in which a rollout has a version, `lending` gives it to other processes of the machine, `deadlines` says how long each may take.
`adapters` and `merging` are for LoRA, `file_form` has the names and shapes of a model's files. A contract in pyproject.toml
says which modules import torch.
"""
