"""The documentation: the tutorial runs as written, links lead somewhere, and the reference lists are complete."""

from __future__ import annotations

import ast
import contextlib
import doctest
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from gaincal import cli
from gaincal.errors import BindError, FileError, FormulaError, OutputError, RequestError, TrustError
from gaincal.formulas import catalog
from gaincal.formulas.program import RESERVED_FLAGS
from gaincal.nexus.names import PIXEL_MASK_BITS
from gaincal.nexus.write import METADATA
from gaincal.sources.recognise import SOURCES

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "gaincal"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md"])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
MATCHING = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


# --- the tutorial --------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(language, text) for language, text in FENCE.findall(page.read_text("utf-8"))]


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Command and expected output, for every line of a console block that begins with a prompt."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected


def assert_output(what: str, expected: str, found: str) -> None:
    """Compare as doctest does: ``...`` stands for anything, and runs of blanks are equal."""
    assert doctest.OutputChecker().check_output(expected, found, MATCHING), (
        f"{what}\n--- documented\n{expected}\n--- found\n{found}"
    )


PROGRESS = re.compile(r"^\w+: \d+ of \d+ .*\n", re.MULTILINE)
"""Lines of what takes long, as it does where other tests run as well."""


def run_command(command: str, fails: bool = False) -> str:
    search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": search, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        command, shell=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert (done.returncode != 0) == fails, f"{command}\n{done.stdout}"
    return PROGRESS.sub("", done.stdout)


def run_python(text: str, names: dict[str, Any]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        exec(compile(text, "tutorial", "exec"), names)
    return shown.getvalue()


def edit(block: str) -> None:
    """Write a file, or change it, as the first line of a block says."""
    first, _, lines = block.partition("\n")
    said = re.fullmatch(r"# ([\w.]+)(?:, (at the end)|, in \[(\w+)\]( instead of what is there)?)?", first)
    assert said, first
    name, at_the_end, part, instead = said.groups()
    file = Path(name)
    if part is None:
        file.write_text(f"{file.read_text('utf-8')}\n{lines}" if at_the_end else lines, "utf-8")
        return
    head, header, rest = file.read_text("utf-8").partition(f"[{part}]\n")
    assert header, first
    body, blank, rest = rest.partition("\n\n")
    kept = {} if instead else {line.split()[0]: line for line in body.splitlines()}
    kept |= {line.split()[0]: line for line in lines.splitlines()}
    file.write_text(head + header + "\n".join(kept.values()) + (blank or "\n") + rest, "utf-8")


def follow(page: Path) -> None:
    """Do everything that a tutorial says, in its order."""
    names: dict[str, Any] = {"__name__": "tutorial"}
    shown = ""
    for block in blocks(page):
        if block.language == "console":
            for command, expected in commands(block.text):
                assert_output(command, expected, run_command(command, fails=expected.startswith("gaincal: ")))
        elif block.language == "python":
            shown = run_python(block.text, names)
        elif block.language == "text":
            assert_output("Python before this", block.text, shown)
        else:
            assert block.language == "toml", f"nobody runs a block of '{block.language}'"
            edit(block.text)


MADE = {
    "tutorial.md": "first_ten.nxs gaincal-demo my.nxs my_counts.nxs my_jungfrau.toml",
    "tutorial-own-detector.md": (
        "gain.npy lark.h5 lark.nxs lark.toml lark_energy.nxs noise.npy pedestal.npy row_parity.npy"
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", MADE)
def test_a_tutorial_runs_as_written(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == "tutorial.md":
        for module in ("matplotlib", "dask"):
            pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    follow(DOCS / page)
    assert sorted(p.name for p in tmp_path.iterdir()) == MADE[page].split()


def test_the_output_of_a_tutorial_is_compared() -> None:
    with pytest.raises(AssertionError, match="documented"):
        assert_output("x", "1 error\n", "2 errors\n")
    assert list(commands("$ a\nb\n$ c\n")) == [("a", "b\n"), ("c", "")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_in_the_docs_compiles(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            compile(block.text, str(page), "exec")


# --- links ---------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Names of the headings of a page, as they are linked."""
    text = FENCE.sub("", page.read_text("utf-8"))
    titles = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def links(page: Path) -> list[str]:
    found = LINK.findall(FENCE.sub("", page.read_text("utf-8")))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{page.name}: {link}"


def test_the_index_links_every_page() -> None:
    linked = {(DOCS / link.partition("#")[0]).resolve() for link in links(DOCS / "index.md")}
    wanted = {p for p in DOCS.rglob("*.md") if "decisions" not in p.parts} - {DOCS / "index.md"}
    assert wanted <= linked


# --- reference -----------------------------------------------------------------------------


def all_commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, member in command.commands.items():
            yield from all_commands(member, f"{path} {name}")


COMMANDS = dict(all_commands(cli.main, "gaincal"))


def section(path: str) -> str:
    """What cli.md says about a command; about the group itself, all before the first command."""
    text = (DOCS / "reference" / "cli.md").read_text("utf-8")
    if path == "gaincal":
        return text.partition("\n## gaincal")[0]
    found = re.search(rf"^##+ {path}\n(.*?)(?=^##+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"cli.md does not describe '{path}'"
    return found[1]


def options(command: click.Command) -> set[str]:
    context = click.Context(command, info_name="gaincal", help_option_names=["-h", "--help"])
    parameters = command.get_params(context)
    return {o for p in parameters if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)}


@pytest.mark.parametrize("path", COMMANDS)
def test_every_option_of_a_command_is_described(path: str) -> None:
    rows = [line.split(" | ")[0] for line in section(path).splitlines() if line.startswith("| `-")]
    described = {o for row in rows for o in re.findall(r"(?<![\w-])--?[a-z][a-z-]*", row)}
    common = {"--trust-dir", "--json"} if path == "gaincal" else set()
    assert described - common == options(COMMANDS[path])


def test_commands_that_are_described_exist() -> None:
    text = (DOCS / "reference" / "cli.md").read_text("utf-8")
    assert set(re.findall(r"^##+ (gaincal .*)$", text, re.MULTILINE)) == set(COMMANDS) - {"gaincal"}


def test_exit_codes_are_described() -> None:
    rows = re.findall(r"^\| (\d) \|", section("gaincal"), re.MULTILINE)
    classes = (FormulaError, FileError, TrustError, BindError, RequestError, OutputError)
    assert {int(r) for r in rows} == {0, 1, cli.inspect.FINDINGS_EXIT, *(c.exit_code for c in classes)}


def test_metadata_are_described() -> None:
    rows = [r for r in section("gaincal embed").splitlines() if r.endswith((" yes |", " no |"))]
    assert {n for r in rows for n in re.findall(r"`(\w+)`", r.split(" | ")[0])} == set(METADATA)


def codes_in(tree: ast.AST) -> Iterator[str]:
    """Codes of errors and findings: ``code="..."`` and the first argument of ``Finding``."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        values = [k.value for k in node.keywords if k.arg == "code"]
        if isinstance(node.func, ast.Name) and node.func.id == "Finding":
            values += node.args[:1]
        for value in values:
            if isinstance(value, ast.Constant):
                yield str(value.value)
            else:
                passed = value.id if isinstance(value, ast.Name) else getattr(value, "attr", None)
                assert passed == "code", f"a code that cannot be listed: {ast.dump(value)}"


def test_findings_are_exactly_the_codes_in_the_source() -> None:
    used = {c for path in SOURCE.rglob("*.py") for c in codes_in(ast.parse(path.read_text("utf-8")))}
    text = (DOCS / "reference" / "findings.md").read_text("utf-8")
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", text, re.MULTILINE)
    assert set(listed) == used | {"formula", "bind", "request"}
    assert listed == sorted(set(listed))


def test_sources_are_described() -> None:
    listed = re.findall(r"^\| `(\w+)` \| .* \| (?:mapped|copied) \|", section("gaincal embed"), re.MULTILINE)
    assert set(listed) == set(SOURCES)


@pytest.mark.parametrize("page", sorted((DOCS / "how-to").glob("*.md")), ids=lambda p: p.name)
def test_codes_in_tables_of_a_how_to_are_findings(page: Path) -> None:
    listed = set(re.findall(r"^\| `([a-z0-9-]+)` \|", (DOCS / "reference/findings.md").read_text("utf-8"), re.M))
    for table in re.findall(r"^\| refused \| code \| why \|\n(.*?)\n(?!\|)", page.read_text("utf-8"), re.M | re.S):
        for row in table.splitlines()[1:]:
            assert set(re.findall(r"`(.*?)`", row.split(" | ")[1])) <= listed, row


def test_codes_named_elsewhere_are_findings() -> None:
    listed = set(re.findall(r"^\| `([a-z0-9-]+)` \|", (DOCS / "reference/findings.md").read_text("utf-8"), re.M))
    page = (DOCS / "explanation" / "what-gaincal-refuses.md").read_text("utf-8")
    named = {c for group in re.findall(r"\((`[a-z-]+`(?:, `[a-z-]+`)*)\)", page) for c in re.findall(r"`(.*?)`", group)}
    assert named
    assert named <= listed


def test_flags_are_described_with_their_bits() -> None:
    text = (DOCS / "reference" / "flags.md").read_text("utf-8")
    found = {(int(b), n) for b, n in re.findall(r"^\| (\d+) \| `(\w+)` \|", text, re.MULTILINE)}
    own = {(bit, f.name) for bit, f in enumerate(catalog.get("jungfrau").flags)}
    assert found == own | {(bit, name) for name, bit in RESERVED_FLAGS.items()}
    for flag in catalog.get("jungfrau").flags:
        (row,) = re.findall(rf"^\| \d+ \| `{flag.name}` .*$", text, re.MULTILINE)
        stated = re.findall(r"\| (\d+|none|the mask itself) \|$", row)
        assert stated == [str(flag.pixel_mask_bit)] or (flag.pixel_mask_bit is None and not stated[0].isdigit())


def test_mask_bits_are_described() -> None:
    text = (DOCS / "reference" / "flags.md").read_text("utf-8").partition("## Bits of pixel_mask")[2]
    found = re.findall(r"^\| (\d+) \|.*\| `(\w+)` \|$", text, re.MULTILINE)
    assert {int(bit): name for bit, name in found} == dict(PIXEL_MASK_BITS)
