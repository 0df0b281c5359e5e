"""The site of the documentation: pages for linked files, lists, names of the reference, and the search without a server.

``make docs`` builds the whole site with warnings as errors, in CI, too.
"""

import re
import shutil
import types

import pytest
from docs_kit import INSIDE, PAGES, ROOT
from mkdocs.commands.build import build
from mkdocs.config import load_config
from page_kit import launched

from docs.generators import reference, site

CONFIG = types.SimpleNamespace(
    docs_dir=str(ROOT / "docs"),
    site_dir="site",
    use_directory_urls=False,
    plugins=types.SimpleNamespace(_current_plugin="site"),
)


def test_links_are_paths_in_the_repository():
    text = "[a](../sift/loader.py) [b](compile.md#x) [c](https://x.org) [d](#here) [e](../debug/)"
    assert site.linked("docs/sift.md", text) == ["debug", "docs/compile.md", "sift/loader.py"]


@pytest.mark.parametrize(
    ("path", "name", "place", "begin"),
    [
        (
            "sift/loader.py",
            "sift/loader.py.md",
            "source/sift/loader.py.html",
            "# `sift/loader.py`\n\n````python",
        ),
        ("debug/store", "debug/store/README.md", "source/debug/store/index.html", "# store"),
        ("docs/assets", "docs/assets/README.md", "source/docs/assets/index.html", "# `docs/assets`\n\n- ["),
        ("CHANGELOG.md", "CHANGELOG.md", "source/CHANGELOG.html", "# Changelog"),
    ],
)
def test_a_linked_file_or_folder_gets_a_page(path, name, place, begin):
    made = site.page(path, CONFIG)
    assert (made.src_uri, made.dest_uri) == (name, place)
    assert made.content_string.removeprefix(site.UNSEARCHED).startswith(begin)
    assert site.Tree([made]).get_file_from_path(path) is made


def crooked(text):
    """Return the list items that mkdocs would draw otherwise than a code host: not set off, or indented by two."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    glued = re.findall(r"^(?![-\s]|\d+\. ).+\n((?:- |\d+\. ).*)", prose, re.MULTILINE)
    return glued + re.findall(r"^ {1,3}(?:[-*]|\d+\.) .*", prose, re.MULTILINE)


@pytest.mark.parametrize("path", [*PAGES, *INSIDE], ids=lambda path: str(path.relative_to(ROOT)))
def test_lists_look_the_same_everywhere(path):
    assert not crooked(path.read_text())


def test_a_crooked_list_would_be_seen():
    assert crooked("a:\n- b") == ["- b"]
    assert crooked("- a\n  - b\n    - c") == ["  - b"]
    assert not crooked("a:\n\n- b\n  c\n    - d\n\n1. e")


def test_the_reference_has_the_public_names():
    assert reference.public("loopwise.compile") == sorted(
        ["Fit", "Plan", "TrainStep", "fit", "linear_cross_entropy", "load_cache", "optimize", "save_cache"]
    )
    assert reference.public("loopwise.report") == ["report"]
    assert reference.origin("loopwise.debug", "every")[0] == "loopwise.schedule"
    with pytest.raises(ValueError, match="no name Nothing"):
        reference.origin("loopwise.debug", "Nothing")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Return the start page of a site of one page, with the settings of ours."""
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "true")  # the theme sets it
    settings = load_config(str(ROOT / "mkdocs.yml"))
    (tmp_path / "docs" / "assets").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "assets" / "iframe-worker.js", tmp_path / "docs" / "assets")
    (tmp_path / "docs" / "index.md").write_text("# Start\n\n## A heading\n\nSome turquoise words.\n")
    (tmp_path / "mkdocs.yml").write_text(
        "site_name: Small\n"
        f"theme: {{name: material, font: {str(settings.theme['font']).lower()}}}\n"
        f"extra: {{polyfills: {settings.extra['polyfills']}}}\n"
        "plugins: [search, offline]\n"
    )
    build(load_config(str(tmp_path / "mkdocs.yml")))
    return tmp_path / "site" / "index.html"


def test_the_search_works_from_a_file(small):
    messages = []
    with launched() as browser:
        page = browser.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on(
            "request",
            lambda asked: messages.extend([asked.url] * (not asked.url.startswith(("file:", "data:")))),
        )
        page.goto(small.as_uri())
        page.wait_for_function("() => frames.length && frames[0].lunr")
        page.click(".md-search__input")
        page.keyboard.type("turquoise")
        page.wait_for_selector(".md-search-result__item")
        assert "A heading" in page.inner_text(".md-search-result__list")
    assert messages == []
