"""Plan, run, continue and report a table of the paper: ``table=2 mode=plan``."""

from eakd.commands import reproduce

if __name__ == "__main__":
    reproduce()
