"""The metrics of any checkpoint on the test split, ours or the public zoo's."""

from eakd.commands import evaluate

if __name__ == "__main__":
    evaluate()
