"""Compare finished runs: a table of means, spreads and paired differences, and a plot."""

from omegaconf import DictConfig

from eakd.command_line import entry_point
from eakd.config import plain


def main(config: DictConfig) -> None:
    from eakd.reproduce.comparison import report

    print(report(config.runs, plain(config.by), config.baseline, config.select, config.plot))


if __name__ == "__main__":
    entry_point(main, "report")
