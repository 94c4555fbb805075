"""Drives one training on one host: pushes, starts, follows and fetches; prints nothing, without Ansible."""
