"""What the site leaves out: the lists of generated pages, and whatever would load from elsewhere when a page is opened."""

import re

from mkdocs.plugins import event_priority
from mkdocs.structure.files import Files, InclusionLevel

# The theme asks GitHub for the stars of the repository; notebooks bring scripts for formulas and diagrams
_STARS = ' data-md-component="source"'
_SCRIPTS = re.compile(
    r'<!-- Load mathjax -->.*?<!-- End of mathjax configuration -->(?:<script type="module">.*?</script>)?', re.DOTALL
)
_ELSEWHERE = re.compile(
    r"""<(?:script|img|iframe|video|audio|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*"""
    r"""|<link\b(?![^>]*rel=["']?canonical)[^>]*\bhref=["']?(?:https?:)?//[^>]*"""
    r"""|import\(["'](?:https?:)?//[^)]*|@import\b[^;]*//[^;]*|url\(["']?(?:https?:)?//[^)]*"""
)


@event_priority(-101)  # after literate-nav, which reads them
def on_files(files: Files, **kwargs) -> None:
    for file in files:
        if file.name == "SUMMARY":
            file.inclusion = InclusionLevel.EXCLUDED


def on_post_page(output: str, page, **kwargs) -> str:
    """Take out what themes load from elsewhere, and refuse what is left of it."""
    output = _SCRIPTS.sub("", output.replace(_STARS, ""))
    if found := _ELSEWHERE.search(output):
        raise ValueError(f"{page.file.src_uri} loads from the network: {found[0][:200]}")
    return output
