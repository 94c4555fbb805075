"""The container engine: images, layers of packages, environments."""
