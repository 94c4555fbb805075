"""`python -m train_classifier`."""

from train_classifier.cli import main

main()
