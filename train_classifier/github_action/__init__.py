"""The GitHub action: one training as a step of a workflow, and its messages to GitHub and Slack."""
