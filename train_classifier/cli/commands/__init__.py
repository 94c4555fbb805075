"""One file for each command; its object has the command's name."""
