"""Training runs of the command line: one job by the playbook, or a group of jobs; and the report of a job."""
