"""Our losses and weights inside other projects' training loops."""
