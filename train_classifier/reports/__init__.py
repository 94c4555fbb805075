"""The results of a training as report, job summary, page and charts."""
