"""The rollout service: token ids in, token ids out; the service receives new weights while it generates."""
