"""Write the help texts into docs/reference.md: ``python tests/readme.py``."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from rn50feat.cli.main import main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
REFERENCE = ROOT / "docs/reference.md"
BEGIN, END = "<!-- reference -->\n", "<!-- end of reference -->"


def reference() -> str:
    """Return the help texts of the program and its commands, as Markdown."""
    texts = []
    for command in [None, *sorted(main.commands)]:
        arguments = [command, "--help"] if command else ["--help"]
        output = CliRunner().invoke(main, arguments, prog_name="rn50feat", terminal_width=98).output
        texts.append(f"### {' '.join(['rn50feat', *arguments])}\n\n```text\n{output.rstrip()}\n```\n")
    return "\n" + "\n".join(texts) + "\n"


def with_reference(page: str) -> str:
    """Replace the help texts of a page with those of the program."""
    before, _, rest = page.partition(BEGIN)
    return before + BEGIN + reference() + END + rest.partition(END)[2]


if __name__ == "__main__":
    REFERENCE.write_text(with_reference(REFERENCE.read_text(encoding="utf-8")), encoding="utf-8")
