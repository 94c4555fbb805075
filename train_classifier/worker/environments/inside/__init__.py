"""Programs that run inside a container, by its own Python."""
