"""Jobs of a Slurm cluster: submission, liveness and cancel on the submit host; what a job got on a node."""
