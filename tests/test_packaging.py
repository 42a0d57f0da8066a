"""The wheel holds one top-level name, `picard`, with everything inside it, and works far from this checkout."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import picard

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "picard", "integrators", "adapters")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy: setuptools would leave build/ in the tree and take stale files from it the next time."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree)
    target = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    built = subprocess.run([*command, "--wheel-dir", target, tree], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = target.glob("*.whl")
    return wheel


def test_wheel_holds_picard_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"picard"}
    assert not [name for name in names if name.endswith(".pyi")]
    assert "picard/py.typed" in names
    for folder, inside in (("picard", ""), ("integrators", "integrators/"), ("adapters", "adapters/")):
        for file in (ROOT / folder).rglob("*.py"):
            relative = file.relative_to(ROOT / folder).as_posix()
            assert f"picard/{inside}{relative}" in names


def test_wheel_imports_without_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # Printing where things came from shows that the copy was imported, not a checkout that is installed editable.
    script = "import picard, picard.integrators, picard.adapters as last; print(*picard.__path__, last.__file__)"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert all(Path(file).is_relative_to(site) for file in ran.stdout.split()), ran.stdout


def test_versions_agree() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert cited is not None
    assert cited[1] == picard.__version__
