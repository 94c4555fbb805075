"""What the files of a repository say of it as a Python project; nothing of it runs."""
