"""Training speed of the shipped loop, of a plain loop, and of the bare limit."""

from eakd.commands import benchmark

if __name__ == "__main__":
    benchmark()
