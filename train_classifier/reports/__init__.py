"""What is told of a training: report, job summary, page and charts."""
