"""The reference of the Python interface: a list of the public names, and a page per package, made from the docstrings."""

import ast
import importlib
from itertools import pairwise
from pathlib import Path

import mkdocs_gen_files

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"wagle_trl": ROOT / "wagle_trl", "wagle_kernels": ROOT / "kernels" / "wagle_kernels"}
FOLDER = "reference/api"
LEFT_OUT = {"cli"}  # its pages are those of the command line


def main() -> None:
    pages = ["* [Public names](index.md)"]
    rooms = {}
    for package, place in PLACES.items():
        for path in sorted(place.iterdir()):
            if (path / "__init__.py").exists() and path.name not in LEFT_OUT and not path.name.startswith("_"):
                rooms[f"{package}.{path.name}"] = f"::: {package}.{path.name}\n"
        modules = [path.stem for path in sorted(place.glob("[!_]*.py"))]
        rooms[package] = f"# {package}\n\n" + "".join(f"::: {package}.{name}\n\n" for name in modules)
    for name, text in rooms.items():
        write(f"{name}.md", text)
        pages.append(f"* [{name}]({name}.md)")
    write("index.md", public_names())
    write("SUMMARY.md", "\n".join(pages))


def public_names() -> str:
    """Table of what the packages export."""
    lines = ["# Public names", "", "What `from wagle_trl import ...` and `from wagle_kernels import ...` offer.", ""]
    for package, place in PLACES.items():
        homes = exported(place / "__init__.py", package)
        names = importlib.import_module(package).__all__
        lines += [f"## {package}", "", "| name | |", "| --- | --- |"]
        lines += [f"| [`{name}`][{homes[name]}] | {first_line(package, name, homes[name])} |" for name in names] + [""]
    return "\n".join(lines)


def exported(init: Path, package: str) -> dict[str, str]:
    """Where each imported name of a package is defined."""
    found = {}
    for node in ast.walk(ast.parse(init.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            found |= {alias.asname or alias.name: f"{package}.{node.module}.{alias.name}" for alias in node.names}
    return found


def first_line(package: str, name: str, home: str) -> str:
    """What the docstring of a public name begins with."""
    found = getattr(importlib.import_module(package), name)
    is_constant = isinstance(found, str | int | tuple | dict)
    text = constants(home.rpartition(".")[0])[name] if is_constant else found.__doc__ or ""
    first = " ".join(text.strip().split("\n\n")[0].split())
    return first.replace("[`~", "`").replace("[`", "`").replace("`]", "`").replace("|", "\\|")


def constants(module: str) -> dict[str, str]:
    """The texts below the constants of a module, which have no docstring when it runs."""
    body = ast.parse(Path(importlib.import_module(module).__file__ or "").read_text()).body
    return {
        target.id: below.value.value
        for node, below in pairwise(body)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str)
        for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
        if isinstance(target, ast.Name)
    }


def write(name: str, text: str) -> None:
    with mkdocs_gen_files.open(f"{FOLDER}/{name}", "w") as file:
        file.write(text)


main()
