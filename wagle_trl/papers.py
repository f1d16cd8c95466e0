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


# Papers that several objectives come from
NPO = Paper(
    "2404.05868",
    "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
    "Zhang, Ruiqi and Lin, Licong and Bai, Yu and Mei, Song",
)
GRADIENT_PERSPECTIVE = Paper(
    "2502.19301",
    "Rethinking LLM Unlearning Objectives: A Gradient Perspective and Go Beyond",
    "Wang, Qizhou and Zhou, Jin Peng and Zhou, Zhanke and Shin, Saebyeol and Han, Bo and Weinberger, Kilian Q.",
)
CLOSER_LOOK = Paper(
    "2410.08109",
    "A Closer Look at Machine Unlearning for Large Language Models",
    "Yuan, Xiaojian and Pang, Tianyu and Du, Chao and Chen, Kejiang and Zhang, Weiming and Lin, Min",
)
