"""What is installed, and that the repository's own folders shadow nothing."""

import configparser
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


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


def test_wheel_metadata(wheel):
    info = f"wagle_trl-{PROJECT['version']}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    assert "\nName: wagle-trl\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert scripts["console_scripts"]["wagle"] == "wagle_trl.cli.main:main"
