"""The layers of the house: a module imports only from its own layer or lower ones, and never in a circle.

The imports are read with `ast`, so those inside functions and under `TYPE_CHECKING` count as well. A package's
`__init__.py` is a facade for users: it may gather names from anywhere, but no module may import from it. The one facade
that modules do use is `wagle_kernels`, the public surface of the layer below everything.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("wagle_kernels", "wagle_trl")

# A name covers its submodules; the longest match counts.
LAYERS = {
    0: ("wagle_kernels",),
    1: (
        "wagle_trl.memory.allocations",
        "wagle_trl.files.checkpoint",
        "wagle_trl.masks.positions",
        "wagle_trl.deltas.delta_file",
        "wagle_trl.files.atomic",
        "wagle_trl.masks.fingerprint",
        "wagle_trl.files.hub_file",
        "wagle_trl.files.manifest",
        "wagle_trl.masks.mask",
        "wagle_trl.attribution.config",
        "wagle_trl.files.model_files",
        "wagle_trl.losses.objectives",
        "wagle_trl.hub.citations",
        "wagle_trl.files.reading",
        "wagle_trl.masks.scope",
        "wagle_trl.attribution.scores",
        "wagle_trl.masks.values",
        "wagle_trl.files.schemas",
        "wagle_trl.files.tensor_file",
        "wagle_trl.terminal",
        "wagle_trl.text",
        "wagle_trl.comparison.trajectory",
        "wagle_trl.evaluation.metrics",
        "wagle_trl.evaluation.memorization",
        "wagle_trl.evaluation.membership",
    ),
    2: (
        "wagle_trl.optim.compact_state",
        "wagle_trl.attribution.compute_mask",
        "wagle_trl.comparison",
        "wagle_trl.attribution.statistics",
        "wagle_trl.attribution.statistic_store",
        "wagle_trl.memory.simulation",
        "wagle_trl.attribution.store_choice",
        "wagle_trl.planning.planner",
        "wagle_trl.planning.advice",
        "wagle_trl.attribution.selection",
        "wagle_trl.optim.masked_adamw",
        "wagle_trl.optim.overlap",
        "wagle_trl.deltas.delta",
        "wagle_trl.deltas.on_disk",
        "wagle_trl.hub.load",
        "wagle_trl.deltas.merging",
        "wagle_trl.deltas.config_changes",
        "wagle_trl.deltas.verification",
        "wagle_trl.deltas.peft_layers",
        "wagle_trl.deltas.peft_export",
        "wagle_trl.hub.card",
        "wagle_trl.hub.card_facts",
        "wagle_trl.data.rows",
        "wagle_trl.data.provenance",
        "wagle_trl.hub.publish",
        "wagle_trl.hub.staging",
        "wagle_trl.evaluation.disjoint",
        "wagle_trl.data.pairing",
        "wagle_trl.attribution.report",
    ),
    3: (
        "wagle_trl.trainers",
        "wagle_trl.evaluation.attacks",
        "wagle_trl.evaluation.inference",
        "wagle_trl.evaluation.tofu",
        "wagle_trl.evaluation.drift",
        "wagle_trl.evaluation.resumable_records",
        "wagle_trl.evaluation.cache_key",
        "wagle_trl.evaluation.retrained_model",
        "wagle_trl.evaluation.suite",
        "wagle_trl.evaluation.robustness",
    ),
    4: ("wagle_trl.cli", "wagle_trl.demo"),
}


def layer_of(module: str) -> int | None:
    matches = [
        (len(name), layer)
        for layer, names in LAYERS.items()
        for name in names
        if module == name or module.startswith(name + ".")
    ]
    return max(matches)[1] if matches else None


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
    graph: dict[str, set[str]] = {}
    for path, source in sorted(sources.items()):
        module, is_facade = modules[path]
        layer = layer_of(module)
        if layer is None and not is_facade:
            problems.append(f"{path}: {module} has no layer; assign one in LAYERS of tests/test_layers.py")
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
                if target != "wagle_kernels" or layer == 0:
                    problems.append(f"{where} imports from the facade {target}; import the module that defines it")
            elif target not in known:
                problems.append(f"{where} imports {target}, which does not exist")
            elif (target_layer := layer_of(target)) is not None:  # a target without a layer is reported on its own
                graph.setdefault(module, set()).add(target)
                if target_layer > layer:
                    problems.append(f"{where} (layer {layer}) imports upward: {target} (layer {target_layer})")
    if cycle := find_cycle(graph):
        problems.append("imports in a circle: " + " -> ".join(cycle))
    return problems


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
    "wagle_kernels/select.py": "import torch",
    "wagle_trl/__init__.py": "from wagle_trl.trainers.npo import NPOTrainer",
    "wagle_trl/masks/mask.py": "from wagle_kernels import histogram",
    "wagle_trl/attribution/scores.py": "",
    "wagle_trl/attribution/selection.py": "from . import mask\nfrom .mask import WeightMask",
    "wagle_trl/trainers/__init__.py": "from .npo import NPOTrainer",
    "wagle_trl/trainers/base.py": "from ..selection import select",
    "wagle_trl/trainers/npo.py": "from wagle_trl.trainers import base\nfrom .base import Base",
}
CASES = {
    "absolute": ("wagle_trl/masks/mask.py", "from wagle_trl.attribution.selection import select", "imports upward"),
    "plain": ("wagle_trl/masks/mask.py", "import wagle_trl.trainers.npo", "imports upward"),
    "relative": ("wagle_trl/masks/mask.py", "from .trainers.npo import NPOTrainer", "imports upward"),
    "submodule": ("wagle_trl/masks/mask.py", "from .trainers import npo", "imports upward"),
    "two dots": (
        "wagle_trl/attribution/selection.py",
        "from .trainers import npo as n",
        "wagle_trl.trainers.npo (layer 3)",
    ),
    "in a function": ("wagle_trl/masks/mask.py", "def f():\n    from . import selection", "wagle_trl/masks/mask.py:2"),
    "for typing": ("wagle_trl/masks/mask.py", "if TYPE_CHECKING:\n    from . import selection", "imports upward"),
    "by string": (
        "wagle_trl/masks/mask.py",
        "importlib.import_module('wagle_trl.attribution.selection')",
        "imports upward",
    ),
    "circle": ("wagle_trl/trainers/base.py", "from .npo import NPOTrainer", "imports in a circle"),
    "root facade": ("wagle_trl/masks/mask.py", "from wagle_trl import __version__", "facade wagle_trl;"),
    "relative root": ("wagle_trl/masks/mask.py", "from . import __version__", "facade wagle_trl;"),
    "inner facade": ("wagle_trl/trainers/npo.py", "from wagle_trl.trainers import Base", "facade wagle_trl.trainers"),
    "kernel facade": ("wagle_kernels/select.py", "from wagle_kernels import histogram", "facade wagle_kernels"),
    "kernels upward": ("wagle_kernels/select.py", "from wagle_trl.masks.mask import WeightMask", "know nothing"),
    "kernels' facade": ("wagle_kernels/__init__.py", "import wagle_trl", "know nothing"),
    "unknown module": ("wagle_trl/helpers.py", "", "wagle_trl.helpers has no layer; assign one"),
    "missing module": ("wagle_trl/masks/mask.py", "from wagle_trl.gone import x", "does not exist"),
}


def test_checker_accepts_a_lawful_house():
    assert violations(HOUSE) == []


@pytest.mark.parametrize(("path", "source", "message"), CASES.values(), ids=CASES)
def test_checker_catches(path, source, message):
    problems = violations({**HOUSE, path: source})
    assert any(message in problem for problem in problems), problems
