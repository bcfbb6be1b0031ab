"""Training speed of the shipped loop, of a plain loop, and of the bare limit."""

from omegaconf import DictConfig

from eakd.command_line import entry_point


def main(config: DictConfig) -> None:
    from eakd.benchmark import benchmark

    print(benchmark(config))


if __name__ == "__main__":
    entry_point(main, "benchmark")
