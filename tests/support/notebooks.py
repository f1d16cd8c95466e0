"""
Runs the notebooks of the documentation. `python -m tests.support.notebooks` writes what they show into their files.

What differs between two runs or machines is left out: progress bars and warnings on stderr, and times.
"""

import base64
import hashlib
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
DIGEST = "executed_source_sha256"  # in the metadata of a notebook: of the code that its outputs are of
_SECONDS = 300  # for one cell, on a busy machine
_COLOURS = 64  # of a picture in a notebook


def read(path: Path) -> NotebookNode:
    """Read and check a notebook."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that run."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def source_digest(notebook: NotebookNode) -> str:
    """SHA-256 of all code, in order."""
    return hashlib.sha256("\0".join(cell.source for cell in code_cells(notebook)).encode()).hexdigest()


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run all cells in a folder, in place, with the Python that runs this. The first error of a cell is raised."""
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=_SECONDS, kernel_name="python3", resources=place, record_timing=False).execute()
    for cell in code_cells(notebook):
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = _with_few_colours(output.data["image/png"])
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, DIGEST: source_digest(notebook)}
    return notebook


def _with_few_colours(png: str) -> str:
    """A picture in a fraction of its bytes."""
    small = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB").quantize(_COLOURS).save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with TemporaryDirectory() as folder:
            nbformat.write(execute(read(path), Path(folder)), path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")
