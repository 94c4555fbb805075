"""The run of a job on a node of a Slurm cluster."""
