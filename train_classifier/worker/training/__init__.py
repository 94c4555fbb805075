"""The training container: how it is created, followed and stopped."""
