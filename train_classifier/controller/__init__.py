"""Runs one training on one host: push, start, follow, fetch; prints nothing and does not use Ansible."""
