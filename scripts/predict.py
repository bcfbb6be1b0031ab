"""Draw the boxes that a detector finds in images, or weighs most in its distillation."""

from eakd.commands import predict

if __name__ == "__main__":
    predict()
