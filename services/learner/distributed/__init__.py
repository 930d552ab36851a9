"""The ranks of one learner, on one machine or several."""
