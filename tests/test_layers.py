"""The floors of the house: a module imports only from rooms on its own floor or lower ones, and never in a circle.

A room is a folder of `wagle_trl`, or a module beside them. Rooms on one floor may use each other, but not in a circle. The
imports are read with `ast`, so those inside functions and under `TYPE_CHECKING` count as well. A package's `__init__.py` is a
facade for users: it may gather names from anywhere, but no module may import from it. Modules do use two kinds of facades:
those above the kernels use `wagle_kernels`, and `wagle_kernels.backends` chooses between its two backends.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("wagle_kernels", "wagle_trl")
BACKENDS = ("wagle_kernels.reference", "wagle_kernels.triton_ops")

FLOORS = (
    ("wagle_kernels",),
    ("text", "terminal", "papers", "data", "losses", "files", "distributed"),
    ("masks", "memory"),
    ("attribution", "optim", "deltas", "evaluation", "comparison"),
    ("planning", "hub"),
    ("trainers",),
    ("unlearning",),
    ("objectives",),
    ("demo",),
    ("cli",),
)


def room_of(module: str) -> str:
    """`wagle_trl.masks.mask` -> `masks`."""
    package, *parts = module.split(".")
    return parts[0] if package == "wagle_trl" and parts else package


def floor_of(module: str) -> int | None:
    return next((floor for floor, rooms in enumerate(FLOORS) if room_of(module) in rooms), None)


def module_name(path: str) -> tuple[str, bool]:
    """`wagle_trl/cli/__init__.py` -> (`wagle_trl.cli`, True)."""
    parts = path.removesuffix(".py").split("/")
    is_facade = parts[-1] == "__init__"
    return ".".join(parts[:-1] if is_facade else parts), is_facade


def imports(source: str, module: str, is_facade: bool, known: set[str]) -> list[tuple[int, str]]:
    """(line, absolute target) of every import; `from package import submodule` targets the submodule."""
    package = module if is_facade else module.rpartition(".")[0]
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                anchor = parents[: len(parents) - node.level + 1]
                base = ".".join([*anchor, base] if base else anchor)
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                found.append((node.lineno, submodule if submodule in known else base))
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            target = node.args[0].value
            if called in ("import_module", "__import__") and isinstance(target, str) and not target.startswith("."):
                found.append((node.lineno, target))
    return found


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str] | None:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        for target in sorted(graph.get(node, ())):
            if cycle := visit(target, [*trail, node]):
                return cycle
        done.add(node)
        return None

    return next((cycle for node in sorted(graph) if (cycle := visit(node, []))), None)


def violations(sources: dict[str, str]) -> list[str]:
    """What breaks the rules in `sources`, a map from paths such as `wagle_trl/masks/mask.py` to source text."""
    modules = {path: module_name(path) for path in sources}
    facades = {name for name, is_facade in modules.values() if is_facade}
    known = {name for name, _ in modules.values()}
    problems = []
    between_modules: dict[str, set[str]] = {}
    between_rooms: dict[str, set[str]] = {}
    for path, source in sorted(sources.items()):
        module, is_facade = modules[path]
        floor = floor_of(module)
        if floor is None and not is_facade:
            problems.append(f"{path}: {room_of(module)} has no floor; give it one in FLOORS of tests/test_layers.py")
            continue
        for line, target in imports(source, module, is_facade, known):
            if target.split(".")[0] not in PACKAGES:
                continue
            where = f"{path}:{line}: {module}"
            if module.split(".")[0] == "wagle_kernels" and target.split(".")[0] == "wagle_trl":
                problems.append(f"{where} imports {target}, but the kernels know nothing of wagle_trl")
            elif is_facade:
                continue
            elif target in facades:
                is_public = target == "wagle_kernels" and floor != 0
                is_backend = target in BACKENDS and module == "wagle_kernels.backends"
                if not is_public and not is_backend:
                    problems.append(f"{where} imports from the facade {target}; import the module that defines it")
            elif target not in known:
                problems.append(f"{where} imports {target}, which does not exist")
            elif (target_floor := floor_of(target)) is not None:  # a target without a floor is reported on its own
                between_modules.setdefault(module, set()).add(target)
                if room_of(module) != room_of(target):
                    between_rooms.setdefault(room_of(module), set()).add(room_of(target))
                if target_floor > floor:
                    problems.append(f"{where} (floor {floor}) imports upward: {target} (floor {target_floor})")
    cycles = filter(None, map(find_cycle, (between_modules, between_rooms)))
    return problems + ["imports in a circle: " + " -> ".join(cycle) for cycle in cycles]


def tree() -> dict[str, str]:
    homes = {"wagle_kernels": ROOT / "kernels", "wagle_trl": ROOT}
    return {
        path.relative_to(home).as_posix(): path.read_text(encoding="utf-8")
        for package, home in homes.items()
        for path in (home / package).rglob("*.py")
    }


def test_the_tree_respects_its_layers():
    sources = tree()
    for package in PACKAGES:
        assert f"{package}/__init__.py" in sources, f"{package} was not found"
    problems = violations(sources)
    assert not problems, "\n" + "\n".join(problems)


def test_kernels_need_only_torch_and_triton():
    allowed = {"torch", "triton", "wagle_kernels", *sys.stdlib_module_names}
    sources = {path: source for path, source in tree().items() if path.startswith("wagle_kernels/")}
    known = {module_name(path)[0] for path in sources}
    foreign = [
        f"{path}:{line}: {target}"
        for path, source in sources.items()
        for line, target in imports(source, *module_name(path), known)
        if target.split(".")[0] not in allowed
    ]
    assert not foreign, "\n" + "\n".join(foreign)


# A small lawful house; each case below replaces one file and names what must be said about it.
HOUSE = {
    "wagle_kernels/__init__.py": "from wagle_kernels.select import histogram",
    "wagle_kernels/backends.py": "from . import reference",
    "wagle_kernels/reference/__init__.py": "",
    "wagle_kernels/select.py": "import torch",
    "wagle_trl/__init__.py": "from wagle_trl.objectives.npo import NPOTrainer",
    "wagle_trl/text.py": "",
    "wagle_trl/files/reading.py": "from ..text import printable",
    "wagle_trl/data/rows.py": "from ..files.reading import read",
    "wagle_trl/masks/mask.py": "from wagle_kernels import histogram",
    "wagle_trl/attribution/selection.py": "from ..masks import mask\nfrom ..masks.mask import WeightMask",
    "wagle_trl/trainers/__init__.py": "from .base import Base",
    "wagle_trl/trainers/base.py": "from ..attribution.selection import select",
    "wagle_trl/trainers/checks.py": "",
    "wagle_trl/objectives/npo.py": "from wagle_trl.trainers import base\nfrom ..trainers.base import Base",
}
CASES = {
    "absolute": ("wagle_trl/masks/mask.py", "from wagle_trl.attribution.selection import select", "imports upward"),
    "plain": ("wagle_trl/masks/mask.py", "import wagle_trl.objectives.npo", "imports upward"),
    "relative": ("wagle_trl/masks/mask.py", "from ..objectives.npo import NPOTrainer", "imports upward"),
    "submodule": ("wagle_trl/masks/mask.py", "from ..objectives import npo", "imports upward"),
    "renamed": (
        "wagle_trl/trainers/base.py",
        "from ..objectives import npo as n",
        "wagle_trl.objectives.npo (floor 7)",
    ),
    "in a function": ("wagle_trl/masks/mask.py", "def f():\n    from ..attribution import selection", "mask.py:2"),
    "for typing": ("wagle_trl/text.py", "if TYPE_CHECKING:\n    from .masks import mask", "imports upward"),
    "by string": ("wagle_trl/text.py", "importlib.import_module('wagle_trl.masks.mask')", "imports upward"),
    "circle": (
        "wagle_trl/attribution/selection.py",
        "from .selection import select",
        "in a circle: wagle_trl.attribution.selection -> wagle_trl.attribution.selection",
    ),
    "circle of rooms": (
        "wagle_trl/text.py",
        "from .data.rows import load",
        "in a circle: data -> files -> text -> data",
    ),
    "root facade": ("wagle_trl/masks/mask.py", "from wagle_trl import __version__", "facade wagle_trl;"),
    "relative root": ("wagle_trl/masks/mask.py", "from .. import __version__", "facade wagle_trl;"),
    "inner facade": (
        "wagle_trl/unlearning/npo.py",
        "from wagle_trl.trainers import Base",
        "facade wagle_trl.trainers",
    ),
    "kernel facade": ("wagle_kernels/select.py", "from wagle_kernels import histogram", "facade wagle_kernels"),
    "backend facade": ("wagle_kernels/select.py", "from . import reference", "facade wagle_kernels.reference"),
    "kernels upward": ("wagle_kernels/select.py", "from wagle_trl.masks.mask import WeightMask", "know nothing"),
    "kernels' facade": ("wagle_kernels/__init__.py", "import wagle_trl", "know nothing"),
    "unknown module": ("wagle_trl/helpers.py", "", "helpers has no floor; give it one"),
    "unknown room": ("wagle_trl/attic/box.py", "", "attic has no floor; give it one"),
    "missing module": ("wagle_trl/masks/mask.py", "from wagle_trl.gone import x", "does not exist"),
}


def test_checker_accepts_a_lawful_house():
    assert violations(HOUSE) == []


@pytest.mark.parametrize(("path", "source", "message"), CASES.values(), ids=CASES)
def test_checker_catches(path, source, message):
    problems = violations({**HOUSE, path: source})
    assert any(message in problem for problem in problems), problems
