"""Environments: the Python packages of a model, as uv installs them."""
