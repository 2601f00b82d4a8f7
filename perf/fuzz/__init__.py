"""What hostile images do to the service: real files of every format, mutated, counted by what happened."""
