"""The papers that objectives and scores come from, for citations."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """
    A paper on arXiv.

    Args:
        arxiv (`str`): Identifier.
        title (`str`), authors (`str`): As BibTeX has them.
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


# By the names that reports have for objectives
OBJECTIVE_PAPERS = {
    "NPO": Paper(
        "2404.05868",
        "Negative Preference Optimization: From Catastrophic Collapse to Effective Unlearning",
        "Zhang, Ruiqi and Lin, Licong and Bai, Yu and Mei, Song",
    ),
    # TOFU (2401.06121) gave gradient difference its name, and took it from here
    "GradDiff": Paper(
        "2203.12817", "Continual Learning and Private Unlearning", "Liu, Bo and Liu, Qiang and Stone, Peter"
    ),
}
SCORE_PAPERS = {
    "wagle": Paper(
        "2410.17509",
        "{WAGLE}: Strategic Weight Attribution for Effective and Modular Unlearning in Large Language Models",
        "Jia, Jinghan and Liu, Jiancheng and Zhang, Yihua and Ram, Parikshit and Baracaldo, Nathalie and Liu, Sijia",
    ),
    "gradient": Paper(
        "2310.12508",
        "{SalUn}: Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and "
        "Generation",
        "Fan, Chongyu and Liu, Jiancheng and Zhang, Yihua and Wong, Eric and Wei, Dennis and Liu, Sijia",
    ),
    "snip": Paper(
        "1810.02340",
        "{SNIP}: Single-shot Network Pruning based on Connection Sensitivity",
        "Lee, Namhoon and Ajanthan, Thalaiyasingam and Torr, Philip H. S.",
    ),
}
