"""Train a small teacher, distil students with and without EA, and print the comparison."""

from omegaconf import DictConfig

from eakd.command_line import entry_point


def main(config: DictConfig) -> None:
    from eakd.reproduce.quickstart import quickstart

    print(quickstart(config))


if __name__ == "__main__":
    entry_point(main, "quickstart")
