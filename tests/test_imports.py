"""The layout holds: imports point down, no cycles, no long files, no rooms without a name, nothing half done."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SB = ROOT / "sb"
# lower never imports higher; the longest matching prefix counts
RANKS = {
    "sb.registry": 0, "sb.types": 0, "sb.masks": 0, "sb.schedule": 0, "sb.config": 0, "sb.losses": 0,
    "sb.pictures": 0, "sb.provenance": 0, "sb.diversity": 0, "sb.faults": 0,
    "sb.samplers": 1, "sb.guidance": 1, "sb.conditioning": 1, "sb.sharding": 1, "sb.checkpoints": 1,
    "sb.models": 2, "sb.data": 2, "sb.callbacks": 2,
    "sb.formats": 3, "sb.inpaint": 3, "sb.denoising": 2, "sb.app": 5, "sb.frame": 0, "sb.preview": 0, "sb.colour": 1,
    "sb.fill": 1, "sb.asked": 4, "sb.bulk": 4, "sb.bulk_report": 4,
    "sb.networks": 4, "sb.assemble": 4, "sb.export": 4, "sb.launch": 4, "sb.strategies": 3, "sb.evaluate": 4,
    "sb.card": 4,
    "sb.convert": 5, "sb.load_benchmark": 5, "sb.estimate": 1, "sb.scale": 5, "sb.cache": 5, "sb.cache_benchmark": 5,
    "sb.inpaint_benchmark": 5, "sb.overhead_benchmark": 5,
    "sb.train_benchmark": 5, "sb.reach": 1, "sb.rehearsal": 5, "sb.preflight": 6,
    "sb": 7,  # the package itself binds the public names, lazily
}
STRANGERS = {"sb.models", "sb.data", "sb.callbacks"}  # of one rank, and none imports another
NAMELESS = {"utils", "util", "common", "helpers", "helper", "misc"}
UNFINISHED = ("TODO", "FIXME", "XXX", "NotImplementedError")


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(SB.rglob("*.py"))}
TOOLS = sorted((ROOT / "tools").glob("*.py"))


def imports_of(module: str, path: Path) -> set[str]:
    """Every sb module that a file imports, inside functions too; ``from sb import x`` counts as ``sb.x``."""
    found: set[str] = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module or ""
            if node.level:
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                start = ".".join([*base, *([node.module] if node.module else [])])
            inside = {f"{start}.{alias.name}" for alias in node.names} & MODULES.keys()
            found.update(inside if inside and start in ("sb", *STRANGERS) else inside | {start})
    return {name for name in found if name == "sb" or name.startswith("sb.")}


def room_of(module: str) -> str:
    """The longest prefix of a module that the table of ranks knows."""
    parts = module.split(".")
    return next(p for n in range(len(parts), 0, -1) if (p := ".".join(parts[:n])) in RANKS)


def test_every_module_has_a_place():
    homeless = [m for m in MODULES if m != "sb" and room_of(m) == "sb"]
    assert not homeless, f"{homeless}: add them to RANKS in {Path(__file__).name}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module):
    room = room_of(module)
    for other in imports_of(module, MODULES[module]):
        place = room_of(other)
        assert place != "sb" or module == "sb", f"{module} imports the package's front door {other}"
        assert RANKS[place] <= RANKS[room], f"{module} imports {other}, which stands above it"
        assert place == room or not {place, room} <= STRANGERS, f"{module} imports {other}: these rooms never meet"


def test_no_import_cycles():
    graph = {m: imports_of(m, p) & MODULES.keys() - {m} for m, p in MODULES.items()}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module):], module])
        if module not in done:
            for other in graph[module]:
                visit(other, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_the_checks_see_what_they_should(tmp_path):
    path = tmp_path / "probe.py"
    inner = "def f():\n    from ..registry import build\n"
    path.write_text("import sb.masks\nfrom sb import types\n" + inner + "HOME = 'sb.losses'\n")
    assert imports_of("sb.models.probe", path) == {"sb.masks", "sb.types", "sb.registry"}


@pytest.mark.parametrize("path", [*MODULES.values(), *TOOLS], ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_named_and_finished(path):
    text = path.read_text()
    limit = 120 if path in TOOLS else 350
    assert len(text.splitlines()) <= limit, f"{len(text.splitlines())} lines, at most {limit}: split it"
    assert not NAMELESS & {path.stem, *path.relative_to(ROOT).parent.parts}, "a file is called after what it holds"
    assert not [word for word in UNFINISHED if word in text]


@pytest.mark.parametrize("path", [*MODULES.values(), *TOOLS], ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 80, f"{node.name} has {length} lines: few functions need 60, none 80"
