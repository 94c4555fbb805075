"""What enters a running job, or shows what it writes."""
