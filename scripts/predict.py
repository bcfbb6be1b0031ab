"""Draw the boxes that a detector finds in images, and write them down."""

from eakd.commands import predict

if __name__ == "__main__":
    predict()
