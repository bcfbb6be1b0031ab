"""Top-1 and top-5 accuracy of any checkpoint, ours or the public zoo's."""

from eakd.commands import evaluate

if __name__ == "__main__":
    evaluate()
