"""train-classifier: trains a repository's models on GPU hosts. GPL-3.0."""

__version__ = "1.0.0"
