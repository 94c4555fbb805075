"""Files of a job: received, copied into its workspace, and packed."""
