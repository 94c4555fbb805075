"""`train-classifier init`: the first files of a repository, from templates."""
