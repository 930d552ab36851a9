"""Parts of the relay's benchmark: the push on paper, and the processes of the push that is measured."""
