"""A one-stage detector of handwritten digits in larger scenes."""
