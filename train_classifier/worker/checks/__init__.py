"""Checks of the host that `doctor` and the role host_check show."""
