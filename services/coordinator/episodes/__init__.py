"""Episodes in environments: the stream of tokens, what renders it, and the loop of turns."""
