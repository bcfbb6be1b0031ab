"""Compare finished runs: a table of means, spreads and paired differences, and a plot."""

from eakd.commands import report

if __name__ == "__main__":
    report()
