"""Start of the worker."""

import sys

from train_classifier.worker.api import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
