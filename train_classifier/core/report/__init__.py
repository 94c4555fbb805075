"""The report of a job: what is read for it, and the page that shows it."""
