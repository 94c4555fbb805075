"""The GPUs of the host: devices, the queue for them, and whether a container sees them."""
