"""Train one student, or one teacher with ``distiller=none``. ``--help`` lists every choice."""

from omegaconf import DictConfig

from eakd.command_line import entry_point


def main(config: DictConfig) -> None:
    from eakd.training.run import run  # torch loads only when a run starts

    run(config)


if __name__ == "__main__":
    entry_point(main, "train")
