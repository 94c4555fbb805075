"""Code shared by controller and worker. Standard library and Python 3.9 only, as the worker includes it."""
