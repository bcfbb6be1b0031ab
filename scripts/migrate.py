"""A YAML file of mdistiller, or of a fork of it, as one of our commands."""

from eakd.commands import migrate

if __name__ == "__main__":
    migrate()
