"""Train a small teacher, distil students with and without EA, and print the comparison."""

from eakd.commands import quickstart

if __name__ == "__main__":
    quickstart()
