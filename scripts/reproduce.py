"""Plan, run, continue and report a table of the paper: ``table=2 mode=plan``."""

from omegaconf import DictConfig

from eakd.command_line import entry_point


def main(config: DictConfig) -> None:
    from eakd.reproduce.command import reproduce

    reproduce(config)


if __name__ == "__main__":
    entry_point(main, "reproduce")
