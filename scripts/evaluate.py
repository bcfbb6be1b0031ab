"""Top-1 and top-5 accuracy of any checkpoint, ours or the public zoo's."""

from omegaconf import DictConfig

from eakd.command_line import entry_point


def main(config: DictConfig) -> None:
    from eakd.classification import evaluate_checkpoint

    evaluate_checkpoint(config)


if __name__ == "__main__":
    entry_point(main, "evaluate")
