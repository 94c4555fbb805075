"""The GitHub action: one training as a step of a workflow, and what it tells GitHub and Slack."""
