"""What the hooks of the documentation's site take out of its pages, and what they refuse."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import pytest

PAGE = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))


@pytest.fixture
def left_out():
    spec = spec_from_file_location("left_out", Path(__file__).resolve().parents[1] / "docs" / "site" / "left_out.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/a.js"></script>',
        '<img alt="" src="//elsewhere.example/a.png">',
        '<link rel="stylesheet" href="https://fonts.example/css">',
        '<script>await import("https://cdn.example/a.mjs")</script>',
        "<style>@import 'https://fonts.example/css';</style>",
    ],
)
def test_a_page_that_loads_from_elsewhere_is_refused(left_out, html):
    with pytest.raises(ValueError, match=r"page\.md loads from the network"):
        left_out.on_post_page(html, page=PAGE)


def test_links_to_follow_and_files_of_the_site_stay(left_out):
    html = (
        '<link rel="canonical" href="https://a.example/"><a href="https://b.example/"><script src="../c.js"></script>'
    )
    assert left_out.on_post_page(html, page=PAGE) == html


def test_the_scripts_of_notebooks_and_the_stars_of_the_repository_are_taken_out(left_out):
    scripts = (
        '<!-- Load mathjax --><script src=""> </script><!-- End of mathjax configuration -->'
        '<script type="module">import("https://cdn.example/mermaid.mjs")</script>'
    )
    html = f'<a href="https://a.example/" data-md-component="source">code</a>{scripts}<p>text</p>'
    assert left_out.on_post_page(html, page=PAGE) == '<a href="https://a.example/">code</a><p>text</p>'
