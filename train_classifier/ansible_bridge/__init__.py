"""The way through Ansible: playbooks, inventories, and the events of action plugins."""
