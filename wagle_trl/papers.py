"""Papers that define objectives and scores."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """
    A paper on arXiv.

    Args:
        arxiv (`str`): Identifier, such as `2404.05868`.
        title (`str`): Title.
        authors (`str`): Authors in BibTeX's format, `Last, First and Last, First`.
    """

    arxiv: str
    title: str
    authors: str

    @property
    def link(self) -> str:
        """Markdown link to the abstract."""
        return f"[arXiv {self.arxiv}](https://arxiv.org/abs/{self.arxiv})"

    @property
    def bibtex(self) -> str:
        """BibTeX entry."""
        year = f"20{self.arxiv[:2]}"
        return (
            f"@misc{{{self.authors.split(',')[0].lower()}{year},\n"
            f"  title         = {{{self.title}}},\n"
            f"  author        = {{{self.authors}}},\n"
            f"  year          = {{{year}}},\n"
            f"  eprint        = {{{self.arxiv}}},\n"
            "  archiveprefix = {arXiv}\n"
            "}"
        )
