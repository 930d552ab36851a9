"""What a person types: the `sluice` command."""
