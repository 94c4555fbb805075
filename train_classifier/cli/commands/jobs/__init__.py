"""The commands that take a job, or list them."""
