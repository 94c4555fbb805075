"""What both sides know. Standard library and Python 3.9 only: the worker carries it."""
