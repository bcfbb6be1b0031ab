"""A finished run's student as a folder that eakd.load, torch, timm or transformers opens."""

from eakd.commands import export

if __name__ == "__main__":
    export()
