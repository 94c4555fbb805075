"""The state folder: jobs, their files and results."""
