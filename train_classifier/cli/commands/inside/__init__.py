"""The commands that enter the container of a running job."""
