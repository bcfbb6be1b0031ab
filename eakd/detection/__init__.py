"""Object detection: two-stage detectors, and distillation on the regions that they look at."""
