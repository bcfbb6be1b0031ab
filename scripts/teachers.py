"""The teachers of the paper's tables: ``mode=list | fetch | train | check``."""

from eakd.commands import teachers

if __name__ == "__main__":
    teachers()
