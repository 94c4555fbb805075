"""The host and its programs: accounts, control groups, launchers, and this program itself."""
