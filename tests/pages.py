"""The pages that people read, and the blocks of code in them."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "checkpoints" / "README.md"]
PAGES += sorted((ROOT / "docs").rglob("*.md"))

NOT_RUN = re.compile(r"<!-- not run: (\S.*) -->")


@dataclass(frozen=True)
class Block:
    """What stands between two fences.

    Attributes:
        place: file and line, for messages.
        language: the word behind the fence, ``""`` without one.
        reason: why it is not run, from a comment ``<!-- not run: REASON -->`` in the line before.
        before: the page's text before the block.
    """

    place: str
    language: str
    text: str
    reason: str | None
    before: str

    def commands(self):
        """The words of each command, comments removed and continued lines joined."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def blocks(page, *languages):
    """The fenced blocks of a page in any of the languages, or all."""
    lines, found, opened = page.read_text(encoding="utf-8").splitlines(), [], None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = number
            continue
        reason = NOT_RUN.fullmatch(lines[opened - 1]) if opened else None
        found.append(
            Block(
                f"{page.relative_to(ROOT)}:{opened + 1}",
                lines[opened][3:].strip(),
                "".join(f"{each}\n" for each in lines[opened + 1 : number]),
                reason and reason[1],
                "\n".join(lines[:opened]),
            )
        )
        opened = None
    assert opened is None, f"{page}:{opened}: a block without an end"
    return [block for block in found if not languages or block.language in languages]
