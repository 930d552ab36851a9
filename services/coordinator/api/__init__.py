"""CoordinatorService over the parts of one run."""
