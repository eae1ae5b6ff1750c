"""The README and the pages in docs/, and what the program writes into them.

python tests/readme.py          the help texts in docs/reference.md
python tests/readme.py --run    also the output of every example, and the screenshot; takes minutes
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner
from PIL import Image

from rn50feat.cli.main import main

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = (README, *sorted(DOCS.glob("*.md")))
CONSOLE = (README, DOCS / "commands.md", DOCS / "backup-and-moving.md")  # each continues where the one before ends
SCREENSHOT = DOCS / "results-page.webp"
BEGIN, END = "<!-- reference -->\n", "<!-- end of reference -->"

# The program, but for the line that says every 30 seconds how far it is: no test is about the speed of a machine.
_CODE = "from rn50feat.cli import main, terminal; terminal.PLAIN_SECONDS = 1e9; main.main(prog_name='rn50feat')"
_COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ |```).*\n)*)", re.MULTILINE)


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


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a page that are in `language`."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def examples(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the commands in the console blocks of a page, each with the output that the page shows."""
    for block in blocks(page, "console"):
        yield from _COMMAND.findall(block)


def run(command: str, folder: Path) -> str:
    """Run a command as a person would, and return what it prints: stdout, then stderr."""
    program = f'rn50feat() {{ {shlex.join([sys.executable, "-c", _CODE])} "$@"; }}; {command}'
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RN50FEAT")}
    environment |= {"RN50FEAT_DEVICE": "cpu", "RN50FEAT_PRECISION": "fp32"}  # as the README says, whatever is here
    done = subprocess.run(["bash", "-c", program], cwd=folder, env=environment, capture_output=True, encoding="utf-8")
    return done.stdout + done.stderr


def plain(text: str, folder: Path | None = None) -> str:
    """Return a text without what differs from run to run: places, times, sizes, and the last digits of scores."""
    if folder is not None:
        text = text.replace(str(folder), "/…")
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d", "DATE", text)
    text = re.sub(r"in \d+\.\d s", "in SECONDS", text)
    text = re.sub(r"\d+(\.\d+)? kB", "SIZE", text)
    text = re.sub(r"SHA-256 [0-9a-f]{8}…", "SHA-256 …", text)  # the last digits of what torch draws are the processor's
    text = re.sub(r"^cache  .*", "cache", text, flags=re.MULTILINE)  # of this machine
    text = re.sub(r"\d\.\de-\d\d|0\.0e\+00", "ROUNDING", text)
    return re.sub(r"\b[01]\.\d{4,}", lambda match: f"{float(match[0]):.2f}", text)


def run_examples(folder: Path) -> None:
    """Run every example, and write its output into its page where that is another than shown."""
    shutil.copytree(ROOT / "examples/images", folder / "images")
    for page in CONSOLE:
        text = page.read_text(encoding="utf-8")
        for command, shown in examples(page):
            output = run(command, folder)
            if plain(output, folder) != plain(shown):
                output = output.replace(str(folder), "/…")
                text = text.replace(f"$ {command}\n{shown}", f"$ {command}\n{output}")
        page.write_text(text, encoding="utf-8")


def take_screenshot(page: Path, profile: Path) -> None:
    """Save the README's screenshot of a page of results, without the name of its folder."""
    from chromium import Chromium

    browser = Chromium(profile)
    try:
        browser.open(page, width=1000, height=620)
        browser.evaluate(f"document.body.innerHTML = document.body.innerHTML.replaceAll('{page.parent}', '/…')")
        browser.screenshot(profile / "page.png", whole=False)
    finally:
        browser.close()
    Image.open(profile / "page.png").save(SCREENSHOT, lossless=True)


if __name__ == "__main__":
    target = DOCS / "reference.md"
    target.write_text(with_reference(target.read_text(encoding="utf-8")), encoding="utf-8")
    if "--run" in sys.argv:
        with tempfile.TemporaryDirectory() as desk, tempfile.TemporaryDirectory() as profile:
            run_examples(Path(desk))
            take_screenshot(Path(desk, "coast.html"), Path(profile))
