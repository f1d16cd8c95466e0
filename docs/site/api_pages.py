"""The reference of the Python interface: a list of the public names, and a page per package, made from the docstrings."""

from pathlib import Path

import griffe
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
    """Table of what the packages export, each with what its docstring begins with."""
    lines = ["# Public names", "", "What `from wagle_trl import ...` and `from wagle_kernels import ...` offer.", ""]
    for package, place in PLACES.items():
        module = griffe.load(package, search_paths=[place.parent])
        lines += [f"## {package}", "", "| name | |", "| --- | --- |"]
        for name in map(str, module.exports or ()):
            found = module[name]
            found = found[name] if found.is_module else found.final_target  # a module may be named as its function
            lines.append(f"| [`{name}`][{found.path}] | {first_line(found.docstring.value)} |")
        lines.append("")
    return "\n".join(lines)


def first_line(docstring: str) -> str:
    """The beginning of a docstring, on one line of a table."""
    first = " ".join(docstring.strip().split("\n\n")[0].split())
    return first.replace("[`~", "`").replace("[`", "`").replace("`]", "`").replace("|", "\\|")


def write(name: str, text: str) -> None:
    with mkdocs_gen_files.open(f"{FOLDER}/{name}", "w") as file:
        file.write(text)


main()
