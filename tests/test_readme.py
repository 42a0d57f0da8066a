"""Every Python block of the README and the pages runs; blocks of a page share their names, those of the README not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from picard import registry

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [page for page in [README, *sorted((ROOT / "docs").glob("*.md"))] if "```python" in page.read_text("utf-8")]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


# beartype checks a random item of every list, which Hypothesis takes for a strategy's own use of the module
@pytest.mark.filterwarnings("ignore:Do not use the .random. module inside strategies")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))  # a page may register a method
    names: dict[str, object] = {}
    found = list(BLOCK.finditer(text))
    assert len(found) == text.count("```python")
    for block in found:
        if page == README:
            names = {}
        line = text.count("\n", 0, block.start(1))
        code = compile("\n" * line + block[1], str(page), "exec")  # tracebacks then name the page and its line
        exec(code, names)
