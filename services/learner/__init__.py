"""The learner: FSDP2 training of the policy on the groups that the coordinator hands out."""
