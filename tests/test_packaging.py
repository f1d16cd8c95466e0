"""What is installed, and that the repository's own folders shadow nothing."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import packages_distributions, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OUTPUTS = ("build", "cache", "demo-output", "dist", "outputs")  # of commands, as .gitignore has them


def test_kernels_is_no_package():
    """A package named `kernels` in the repository root would hide the distribution that transformers imports."""
    modules = [path.name for path in (ROOT / "kernels").iterdir() if path.suffix in (".py", ".pyi", ".so")]
    assert modules == []


def test_transformers_imports_from_the_repository_root():
    code = "import sys, transformers\nfrom transformers import LlamaForCausalLM\nassert sys.path[0] == ''"
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("code", "heavy"),
    [
        ("from wagle_trl import MaskConfig, SparseDelta, WeightMask", "transformers"),
        ("import wagle_trl.cli.verify", "transformers.modeling_utils"),
    ],
    ids=["masks and deltas", "verify"],
)
def test_what_needs_no_model_waits_for_none(code, heavy):
    code = f"import sys\n{code}\nassert {heavy!r} not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without network from a copy: a `build/` folder left in the tree would leak old files into it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("wagle_trl", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check"]
    command += ["--no-index", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(out.glob("*.whl"))) as archive:
        yield archive


def test_wheel_holds_the_two_packages_and_nothing_else(wheel):
    info = f"wagle_trl-{PROJECT['version']}.dist-info"
    assert {name.split("/")[0] for name in wheel.namelist()} == {"wagle_trl", "wagle_kernels", info}


@pytest.mark.parametrize(("package", "home"), [("wagle_trl", ROOT), ("wagle_kernels", ROOT / "kernels")])
def test_wheel_holds_every_file_of(wheel, package, home):
    """A subfolder without `__init__.py`, or a template that no package-data pattern covers, would be left out."""
    kinds = {".py", ".typed", ".md", ".jinja", ".yaml"}
    files = {path.relative_to(home).as_posix() for path in (home / package).rglob("*") if path.suffix in kinds}
    files.add(f"{package}/py.typed")
    assert files <= set(wheel.namelist()), sorted(files - set(wheel.namelist()))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Names in the source distribution, without its own folder."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    ignored = shutil.ignore_patterns(".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", ".hypothesis", *OUTPUTS)
    shutil.copytree(ROOT, source / "tree", ignore=ignored)
    code = f"from setuptools.build_meta import build_sdist; build_sdist({str(out)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=source / "tree", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


def test_sdist_holds_every_file_that_the_tests_of_it_need(sdist):
    names = (".ci", ".github", "benchmarks", "examples", "kernels", "tests", "wagle_trl")
    folders = [ROOT / name for name in names]
    paths = [path for folder in folders for path in folder.rglob("*")]
    paths += [path for path in ROOT.iterdir() if not path.name.startswith(".")]
    files = {path.relative_to(ROOT) for path in paths if path.is_file() and path.suffix != ".pyc"}
    left_out = {file.as_posix() for file in files if not file.is_relative_to("benchmarks/cache")} - sdist
    assert not left_out
    assert not [name for name in sdist if name.endswith(".pyc") or name.startswith(OUTPUTS)]


LOWER_BOUNDS_OF_TRANSFORMERS_5_17 = {
    "huggingface-hub": "1.5.0",
    "numpy": "1.17",
    "pyyaml": "5.1",
    "safetensors": "0.8.0",
    "tokenizers": "0.23.1",
    "tqdm": "4.60",
}
# Below, a file of data executes code (CVE-2023-47248), an option does (CVE-2024-34062)
HOLES = {"pyarrow": "14.0.1", "tqdm": "4.66.3"}


def lower_bounds(requirements):
    """Lower bound of every requirement that is no extra; `None` where it has none."""
    parsed = [requirement for requirement in map(Requirement, requirements) if "extra" not in str(requirement.marker)]
    return {
        canonicalize_name(requirement.name): next(
            (Version(part.version) for part in requirement.specifier if part.operator in (">=", ">")), None
        )
        for requirement in parsed
    }


def test_every_dependency_has_a_lower_bound_that_is_no_lower_than_it_can_be():
    ours = lower_bounds(PROJECT["dependencies"])
    assert None not in ours.values()
    known = {name: Version(version) for name, version in LOWER_BOUNDS_OF_TRANSFORMERS_5_17.items()}
    needed = [known, {name: Version(version) for name, version in HOLES.items()}]
    assert ours["transformers"] == Version("5.17")
    if ours["trl"] == Version(version("trl")):
        needed.append(lower_bounds(requires("trl")))
    too_low = [(name, bound) for bounds in needed for name, bound in bounds.items() if bound and name in ours]
    assert [(name, bound) for name, bound in too_low if ours[name] < bound] == []


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lowest_constraints_are_the_lower_bounds(python):
    """Where a Python has no wheels of the lower bound, a later version stands for it, under a marker."""
    lines = (ROOT / "constraints-lowest.txt").read_text(encoding="utf-8").splitlines()
    constraints = [Requirement(line) for line in lines if line and not line.startswith("#")]
    chosen = [
        requirement
        for requirement in constraints
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python})
    ]
    assert {str(part.operator) for requirement in chosen for part in requirement.specifier} == {"=="}
    versions = {canonicalize_name(item.name): Version(next(iter(item.specifier)).version) for item in chosen}
    bounds = lower_bounds(PROJECT["dependencies"])
    assert len(chosen) == len(versions)
    assert versions.keys() == bounds.keys()
    marked = {canonicalize_name(requirement.name) for requirement in constraints if requirement.marker}
    later = {name for name, bound in bounds.items() if versions[name] != bound}
    assert later <= (marked if python == "3.13" else set())
    assert all(versions[name] > bounds[name] for name in later)


def test_extras_bring_what_is_imported_late():
    extras = PROJECT["optional-dependencies"]
    names = {extra: [Requirement(line).name for line in lines] for extra, lines in extras.items()}
    assert {extra: packages for extra, packages in names.items() if extra != "dev"} == {
        "tensorboard": ["tensorboard"],
        "trackio": ["trackio"],
        "wandb": ["wandb"],
        "eval": ["lm_eval"],
        "quantized": ["bitsandbytes"],
        "docs": [
            "latex2mathml",
            "mkdocs",
            "mkdocs-gen-files",
            "mkdocs-jupyter",
            "mkdocs-literate-nav",
            "mkdocs-material",
            "mkdocstrings",
        ],
    }
    quickstart = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    assert [extra for extra in names.keys() - {"dev", "docs"} if f"`{extra}`" not in quickstart] == []


def undeclared(folders, declared):
    """Modules that files in `folders` import, whose distribution is not in `declared`."""
    owners = packages_distributions()
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    modules = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"wagle_kernels", "wagle_trl"}
    return {name for name in modules if declared.isdisjoint(map(canonicalize_name, owners.get(name, ())))}


def test_what_is_imported_is_a_dependency():
    """Of a dependency of a dependency, nobody says that it stays."""
    declared = lower_bounds(PROJECT["dependencies"]).keys() | {"wagle-trl"}
    missing = undeclared(["wagle_trl", "kernels"], declared)
    assert missing <= {"bitsandbytes", "pydantic_core"}  # optional; pydantic asks for one version of it


def test_what_the_tests_import_is_installed_for_development():
    developers = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert undeclared(["tests"], lower_bounds(developers).keys()) <= {"benchmarks", "tests"}


def test_wheel_metadata(wheel):
    info = f"wagle_trl-{PROJECT['version']}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "\nName: wagle-trl\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert scripts["console_scripts"]["wagle"] == "wagle_trl.cli.main:main"
