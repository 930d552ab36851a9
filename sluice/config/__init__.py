"""A run's configuration: one strict schema, the recipes that fill it, and the import of verl's."""
