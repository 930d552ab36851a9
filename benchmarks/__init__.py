"""One script a claim: each prints the figure, the limit or peer measured in the same run, and their ratio."""
