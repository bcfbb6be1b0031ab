"""A published detector, detectron2's or torchvision's, as a file that training reads."""

from eakd.commands import convert

if __name__ == "__main__":
    convert()
