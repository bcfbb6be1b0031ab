"""The teachers of the paper's tables: ``mode=list | fetch | train | check``."""

from omegaconf import DictConfig

from eakd.command_line import entry_point


def main(config: DictConfig) -> None:
    from eakd.teachers.command import teachers

    teachers(config)


if __name__ == "__main__":
    entry_point(main, "teachers")
