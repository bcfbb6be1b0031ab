"""Trained teachers in one command: listed, fetched, trained, checked."""
