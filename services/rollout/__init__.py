"""The rollout service: token ids in, token ids out, under weights it receives while it generates."""
