"""The commands that show how jobs went."""
