"""The request for one run: flags, settings, variables and the checkout, all checked first."""
