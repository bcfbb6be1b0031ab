"""Train one student, or one teacher with ``distiller=none``. ``--help`` lists every choice."""

from eakd.commands import train

if __name__ == "__main__":
    train()
