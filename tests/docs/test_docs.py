"""The documents say what is."""

import re
from pathlib import Path

from megatron_entropic.config.reference import settings_markdown

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_settings_page_is_made_from_the_code() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_markdown() + "\n", "run `make docs`"


def test_links_and_pictures_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", page.read_text()):
            link = target[0] or target[1]
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_make_targets_named_in_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"`?make ([a-z0-9-]+)", (ROOT / "README.md").read_text()))
    assert {"quickstart", "test"} <= named <= targets


def test_every_direct_dependency_has_its_line() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    core = re.search(r"CORE = \[(.*?)\]", (ROOT / "setup.py").read_text(), flags=re.DOTALL)
    assert core is not None
    for name in re.findall(r'"([a-z0-9-]+)', core.group(1)):
        assert re.search(rf"(^|\| |, ){name}( |,|$)", page, flags=re.MULTILINE), name
