"""The house rules: direction of imports, equation tags against the index, every command that is shown parses."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import cli

ROOT = Path(__file__).resolve().parent.parent
TOLD = {"my_sampler.py", "my_program.py"}  # the exercises have the reader save them beside generate.py
SOURCES = sorted(  # not what else lies about in a clone: a .venv, data, a folder of one's own
    [p for p in ROOT.glob("*.py") if p.name not in TOLD]
    + [p for init in ROOT.glob("*/__init__.py") if init.parent.name != "benchmarks" for p in init.parent.glob("*.py")]
)
README = (ROOT / "README.md").read_text()
ROOMS = ("diffusion", "models", "dataset", "evaluation")
BASE = ("config", "files", "cli", "machine", "processes", "outputs")  # what every program may use

# who may import what of ours; the rooms know the config and themselves
ALLOWED = {
    "config": set(),
    "check": {"config"},
    "files": {"config"},
    "machine": {"config"},
    "cli": {"config", "machine"},
    "processes": {"config", "machine"},
    "board": {"config"},
    "outputs": {"config", "files"},
    "sampling": {"config", "cli", "diffusion"},
    "painter": {"config", "diffusion", "models"},
    "views": {"config", "files", "dataset"},
    "resume": {"config", "models"},
    "examine": {"views", *ROOMS},
    "trainer": {"config", "files", "machine", "examine", "resume", "views", *ROOMS},
    "main": {*BASE, "check", "board", "trainer", "resume", "generate", *ROOMS},
    "minimal": {"cli", "outputs", "diffusion", "models"},
    "explore": {*BASE, "lessons", *ROOMS},
    "lessons": {"config", "cli", "sampling", "painter", "lessons", *ROOMS},
    **{key: {*BASE, "sampling", "painter", *ROOMS} for key in ("generate", "edit")},
    "evaluate": {*BASE, "sampling", "painter", "measures", *ROOMS},
    "measures": {"painter", "config", "files", "cli", "machine", "processes", "sampling", "measures", *ROOMS},
    **{room: {"config", "check", "files", room} for room in ROOMS},
}
OURS = {p.relative_to(ROOT).parts[0].removesuffix(".py") for p in SOURCES}
PACKAGES = {"torch", "torchvision", "numpy", "matplotlib", "tqdm", "pytest", "PIL"}


def imports(path):
    """The top-level names that a file imports, and whether at the top of the file or inside a function."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert all(a.name != "*" for a in node.names), f"{path}: import star"
            names = [node.module]
        yield from ((name.split(".")[0], node in tree.body) for name in names)


def own(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    wrong = {name for name, _ in imports(path) if name in OURS} - ALLOWED[own(path)]
    assert not wrong, f"{path.name} imports {wrong}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_the_stated_packages_are_needed(path):
    needed = {name for name, at_top in imports(path) if at_top} - OURS - set(sys.stdlib_module_names)
    assert needed <= PACKAGES, f"{path.name} needs {needed - PACKAGES}"


def test_no_drawer_for_odds_and_ends():
    assert not [p for p in SOURCES if p.stem in ("utils", "util", "helpers", "common", "misc")]


def test_what_a_file_says_to_read_next_does_not_come_before_it_in_the_reading_order():
    table = README.split("## Read it")[1].split("## Notation")[0]
    rows = [re.findall(r"\]\(([\w/]+\.py)\)", line) for line in table.splitlines() if line.startswith("| [")]
    place = {file: i for i, row in enumerate(rows) for file in row}
    for file in place:
        if not file.startswith(("diffusion/", "models/", "trainer")):
            continue
        header = " ".join(ast.get_docstring(ast.parse((ROOT / file).read_text())).split())
        for words, low in (("next", place[file]), ("first", 0)):
            for name in re.findall(rf"Read {words}: ([\w./]+\.py)", header):
                other = str((ROOT / file).parent.joinpath(name).resolve().relative_to(ROOT))
                assert low <= place[other], f"{file}: read {words} {name}"
                assert words == "next" or place[other] <= place[file], f"{file}: read {words} {name}"


def test_the_reading_order_holds_every_file_of_the_product():
    table = README.split("## Read it")[1].split("## Notation")[0]
    for path in SOURCES:
        name = path.relative_to(ROOT).as_posix()
        assert f"]({name})" in table or name.endswith("__init__.py"), name


def test_packages_of_others_do_not_take_the_place_of_our_folders(tmp_path):
    """There is a package called dataset, and some bring a folder of benchmarks along."""
    folders = {p.relative_to(ROOT).parts[0] for p in ROOT.glob("*/*.py") if p.parent.name != "tests"}
    assert {"dataset", "models", "benchmarks"} <= folders
    for folder in folders:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("raise RuntimeError('this is another one')")
    programs = "import main, generate, edit, explore, evaluate, benchmarks.compare"
    path = {**os.environ, "PYTHONPATH": str(tmp_path)}  # after the folder that we are in, as site-packages is
    done = subprocess.run([sys.executable, "-c", programs], cwd=ROOT, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- equations

PAPERS = (
    r"DDPM|iDDPM|DDIM|CFG|EDM|Score SDE|DPM-Solver\+\+|Katharopoulos et al\. 2020|Salimans & Ho 2022|Lin et al\. 2023"
)
TAG = re.compile(
    rf"(?<!\w)(?:{PAPERS}),? (?:Eq\. \(\d+\)|Alg\. \d+|Sec\. \d(?:\.\d)*|App\. [A-Z]|Table \d+)"
    r"|Min-SNR \(Hang et al\. 2023\)"
)


def tags(text):
    return {t.replace(",", "") for t in TAG.findall(text)}


def index():
    """{tag: file} of the README's equation index."""
    section = README.split("## Equation index")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| .* \| `([^`]+)` \|$", section, re.M)
    found = {}
    for cell, file in rows:
        assert tags(cell), f"no tag in {cell!r}"
        found.update({tag: [*found.get(tag, []), file] for tag in tags(cell)})
    return found


def test_every_tag_of_the_source_is_in_the_index_and_the_other_way_round():
    in_source = set().union(*(tags(p.read_text()) for p in SOURCES))
    assert in_source == set(index())


def test_the_index_names_the_file_that_has_the_tag():
    for tag, files in index().items():
        for file in files:
            assert tag in tags((ROOT / file).read_text()), f"{tag} is not in {file}"


def test_the_mathematics_is_explained_beside_the_code():
    """At least a third of the non-empty lines of diffusion/ teach, as comments or docstrings."""
    taught = total = 0
    for path in (ROOT / "diffusion").glob("*.py"):
        text = path.read_text()
        doc = set()
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.Expr)
                and isinstance(node.value, ast.Constant)
                and isinstance(node.value.value, str)
            ):
                doc |= set(range(node.lineno, node.end_lineno + 1))
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                total += 1
                taught += number in doc or "#" in line
    assert taught / total > 1 / 3


# ---------------------------------------------------------------- commands

DOCS = sorted((ROOT / "docs").glob("*.md"))
COMMAND = r"(?:python|torchrun \S+) (?:main|generate|explore|evaluate|edit|minimal|benchmarks/\w+)\.py"


def shown(path):
    """The commands of a page in order: in a block of code, or between backticks."""
    found = re.finditer(rf"^(?:\$ )?({COMMAND}[^\n#]*)|(?<!`)`({COMMAND}[^`\n]*)`", path.read_text(), re.M)
    return [(match[1] or match[2]).strip() for match in found]


COMMANDS = [command for path in (ROOT / "README.md", *DOCS) for command in shown(path)]


def test_there_are_commands():
    assert len(COMMANDS) >= 8


def parsed(command):
    """(program, its arguments) of a command."""
    words = [word for word in shlex.split(command) if word not in ("...", "--help")]
    program, *argv = words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]
    module = importlib.import_module(program.removesuffix(".py").replace("/", "."))
    if hasattr(module, "parser"):
        return module, module.parser().parse_args(argv)
    with pytest.MonkeyPatch.context() as patch:  # a benchmark: as far as its command line goes
        real, found = cli.Parser.parse_args, []
        patch.setattr(cli.Parser, "parse_args", lambda *a: found.append(real(*a)) or sys.exit())
        with pytest.raises(SystemExit):
            module.main(argv)
    return module, found[0]


@pytest.mark.parametrize("command", sorted(set(COMMANDS)))
def test_every_command_of_the_readme_and_docs_parses(command):
    import main

    module, args = parsed(command)
    if module is main:
        main.check(main.override(main.PRESETS[args.preset or "textiles"], main.chosen(args)))


def trainings(*pages):
    """(command, its run folder, --resume?) of every training; the same command twice is the same run, named again."""
    for command in dict.fromkeys(command for page in pages for command in shown(page) if "main.py" in command):
        _, args = parsed(command)
        if not (args.list_presets or args.dry_run or args.verify or args.export or "--help" in command):
            yield command, args.out or f"ckpt/{args.preset or 'textiles'}", args.resume


@pytest.mark.parametrize("page", [ROOT / "README.md", *DOCS], ids=lambda p: p.name)
def test_no_command_trains_into_a_folder_that_one_before_it_on_the_page_or_in_the_readme_filled(page):
    filled = set()
    for command, folder, resume in trainings(ROOT / "README.md", page):
        assert (folder in filled) == resume, f"{command}: {folder}"
        filled.add(folder)


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=lambda p: p.name)
def test_every_file_that_a_page_names_exists(path):
    for name in re.findall(r"\]\(([\w./-]+)\)", path.read_text()):
        assert (path.parent / name).exists(), name
