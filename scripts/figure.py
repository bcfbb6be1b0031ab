"""The paper's figures and those of any runs: planned, run, computed and drawn."""

from eakd.commands import figure

if __name__ == "__main__":
    figure()
