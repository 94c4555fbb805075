"""The interface to Ansible: playbooks, inventories, and the events of action plugins."""
