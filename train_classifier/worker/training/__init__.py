"""The container that trains: made, followed and ended."""
