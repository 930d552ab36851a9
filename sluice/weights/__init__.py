"""How one version's weights get from the learner to a rollout: packed, digested, sent by membership epoch, verified.

`manifest` and `snapshot` say what travels, `sender` and `receiver` move it in threads of their own, `backends` is the
only module here that imports torch, `files` is the way where no collective reaches, `wire` speaks protobuf.
"""
