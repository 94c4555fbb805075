"""One run as it is asked for: flags, settings, variables and the checkout, checked first."""
