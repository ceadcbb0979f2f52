"""The map of docs/architecture.md, enforced: who imports whom, and where heavy libraries enter."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(p for room in ("towers", "data", "pipeline") for p in (ROOT / room).rglob("*.py"))

# room → the rooms it may import; the table of docs/architecture.md
MAY = {
    "towers": set(),
    "towers.errors": set(),
    "towers.features": {"towers.errors"},
    "towers.evaluation": {"towers.errors", "towers.features"},
    "towers.model": {"towers.errors", "towers.features", "towers.evaluation"},
    "towers.index": {"towers", "towers.errors", "towers.features"},
    "data": {"towers.errors", "towers.features", "towers.evaluation"},
    "pipeline": {"towers.errors", "towers.features", "towers.evaluation", "towers.model", "towers.index", "data"},
}
FROM_MODEL = {"towers/index/embed.py", "towers/index/towers_onnx.py"}
HEAVY = {
    "torch": lambda f: f.startswith(("towers/model/", "towers/evaluation/", "pipeline/")) or f in FROM_MODEL
    or f in {"data/batches.py", "data/sending.py", "towers/index/devices.py"},
    "pytorch_lightning": lambda f: f in {"data/module.py", "towers/model/module.py", "towers/model/callbacks.py",
                                         "towers/model/saving.py", "pipeline/training.py"},
    "hydra": lambda f: f.startswith("pipeline/"),
    "omegaconf": lambda f: f.startswith("pipeline/"),
    "wandb": lambda f: False,
    "duckdb": lambda f: f.startswith("data/"),
    "pyspark": lambda f: f == "data/spark_engine.py",
    "faiss": lambda f: f.startswith("towers/index/"),
    "matplotlib": lambda f: f in {"towers/evaluation/pictures.py", "towers/index/tuning_told.py"},
}  # fmt: skip


def room(module: str) -> str | None:
    """The room of a module of ours."""
    parts = module.split(".")
    if parts[0] in ("data", "pipeline"):
        return parts[0]
    return ".".join(parts[:2]) if parts[0] == "towers" else None


def imports(path: Path) -> list[str]:
    """Every module that a file imports, wherever in it."""
    out = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            out += [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            out += [node.module] + [f"{node.module}.{a.name}" for a in node.names if node.module == "towers"]
    return out


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_follow_the_map(path: Path) -> None:
    name = relative(path)
    mine = room(name.removesuffix(".py").replace("/", ".").removesuffix(".__init__")) or "towers"
    for module in imports(path):
        theirs = room(module)
        if theirs is None or theirs == mine:
            continue
        if theirs == "towers.model" and name in FROM_MODEL:
            continue
        assert theirs in MAY[mine], f"{name} imports {module}: {mine} may import {sorted(MAY[mine])}"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_heavy_libraries_enter_at_named_places(path: Path) -> None:
    for module in imports(path):
        allowed = HEAVY.get(module.split(".")[0])
        assert allowed is None or allowed(relative(path)), f"{relative(path)} imports {module}"


def test_the_table_in_the_docs_is_this_one() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for name, may in MAY.items():
        if name in ("towers", "towers.errors"):
            continue
        row = re.search(rf"^\| `{re.escape(name.replace('.', '/'))}/` \|.*\| (.*) \|$", text, re.M)
        assert row, f"docs/architecture.md has no row for {name}"
        told = set(re.findall(r"`([a-z/]+)`", row.group(1)))
        wanted = {m.replace(".", "/") for m in may if m not in ("towers", "towers.errors")}
        assert told >= wanted, f"{name}: the docs say {sorted(told)}, the code may import {sorted(wanted)}"


@pytest.mark.parametrize("page", sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")]), ids=relative)
def test_the_docs_name_modules_that_are_there(page: Path) -> None:
    named = set(re.findall(r"\b(?:towers|data|pipeline|benchmarks|tests)/[a-z_0-9/]+\.py\b", page.read_text()))
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


def test_importing_towers_imports_nothing_heavy() -> None:
    code = "import sys, towers, towers.index, towers.features.schema; print([m for m in %r if m in sys.modules])"
    heavy = ["torch", "pytorch_lightning", "hydra", "wandb", "duckdb", "faiss", "onnxruntime"]
    out = subprocess.run([sys.executable, "-c", code % heavy], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "[]"


def test_no_module_is_above_500_lines_and_verbs_are_thin() -> None:
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 500, relative(path)
    for verb in ("prepare", "train", "eval", "export", "query"):
        assert len((ROOT / f"{verb}.py").read_text().splitlines()) <= 80, verb
