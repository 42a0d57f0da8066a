"""The direction of imports and the size of files: integrators, adapters and the kit stand on the core only."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = sorted((ROOT / "picard").glob("*.py"))
KIT = sorted((ROOT / "picard" / "verify").glob("*.py"))
SATELLITES = sorted(file for folder in ("integrators", "adapters") for file in (ROOT / folder).rglob("*.py"))
CORE_MODULES = {file.stem for file in CORE} - {"__init__"}
FACE = ROOT / "picard" / "__init__.py"

MODEL_LIBRARIES = {"diffusers", "diffusion_policy", "torchdiffeq", "torchsde"}
# What may be imported when picard is: the rest waits until it is used, so that the core works without it.
ALWAYS_THERE = sys.stdlib_module_names | {"torch", "numpy", "picard"}
# The one exception: shape annotations, which fall back to plain names where jaxtyping is not installed.
GUARDED = {"shapes.py": {"jaxtyping"}}
LONGEST_FILE = 250
# What makes tensors on PyTorch's default device, a GPU for some, unless it is told where.
MAKERS = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros"}
# Where plans are made the default is the CPU, see `on_host`, which asks for it.
PLANNERS = {
    ROOT / "picard/device.py",
    ROOT / "picard/odeint.py",
    ROOT / "adapters/trace.py",
    ROOT / "adapters/probe.py",
}

each_core_file = pytest.mark.parametrize("file", CORE, ids=lambda file: file.name)
each_inner_file = pytest.mark.parametrize("file", CORE + KIT, ids=lambda file: f"{file.parent.name}/{file.name}")
each_satellite_file = pytest.mark.parametrize("file", SATELLITES, ids=lambda file: f"{file.parent.name}/{file.name}")
each_file = pytest.mark.parametrize("file", CORE + KIT + SATELLITES, ids=lambda file: f"{file.parent.name}/{file.name}")


def imported(node: ast.AST, package: str) -> list[str]:
    """The full dotted names that an import statement asks for; relative ones resolved against `package`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        kept = package.split(".")[: 1 - node.level or None] if node.level else []
        base = ".".join([*kept, *([node.module] if node.module else [])])
        return [f"{base}.{alias.name}" for alias in node.names]
    return []


def at_import_time(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: not in a function, not under TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for otherwise in child.orelse:
                yield otherwise
                yield from at_import_time(otherwise)
            continue
        yield child
        yield from at_import_time(child)


def names_satellite(name: str) -> bool:
    return name.removeprefix("picard.").split(".")[0] in {"integrators", "adapters"}


def package_of(file: Path) -> str:
    return "picard" if file in CORE else f"picard.{file.parent.name}"


@each_inner_file
def test_core_and_kit_do_not_know_the_satellites(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    imports.sort(key=lambda node: node.lineno)
    found = [node for node in imports if any(names_satellite(name) for name in imported(node, package_of(file)))]
    if file == FACE:  # the face of the package shows them too, after everything that they need
        assert found == imports[len(imports) - len(found) :]
    else:
        assert not found, [ast.unparse(node) for node in found]


@each_inner_file
def test_core_and_kit_know_no_model_library(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    roots = {name.split(".")[0] for node in ast.walk(tree) for name in imported(node, package_of(file))}
    assert not roots & MODEL_LIBRARIES


@each_core_file
def test_core_does_not_know_the_kit(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {name for node in ast.walk(tree) for name in imported(node, "picard")}
    assert not any(name.removeprefix("picard.").split(".")[0] == "verify" for name in names)


@each_satellite_file
def test_satellites_import_siblings_and_core_modules_only(file: Path) -> None:
    """Relative among themselves and absolute to the core: the code is then true in a checkout and in a wheel."""
    folder = file.relative_to(ROOT).parts[0]
    package = ".".join(file.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for name in imported(node, package):
            first, _, rest = name.partition(".")
            if isinstance(node, ast.ImportFrom) and node.level:
                assert first == folder, ast.unparse(node)
            elif first in {"picard", "integrators", "adapters"}:
                assert first == "picard", ast.unparse(node)
                assert rest.split(".")[0] in CORE_MODULES, ast.unparse(node)


@each_file
def test_optional_libraries_wait_until_they_are_used(file: Path) -> None:
    statements = list(at_import_time(ast.parse(file.read_text(encoding="utf-8"))))
    roots = {name.split(".")[0] for node in statements for name in imported(node, package_of(file))}
    assert roots <= ALWAYS_THERE | GUARDED.get(file.name, set())


@each_file
def test_files_stay_small(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= LONGEST_FILE


@each_file
def test_tensors_say_where_they_are_made(file: Path) -> None:
    if file in PLANNERS or file.parent.name == "integrators":
        return
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("torch.") in MAKERS:
            assert "device" in {keyword.arg for keyword in node.keywords}, f"line {node.lineno}"
