"""A serving process needs numpy, pyarrow, onnxruntime and FAISS, and nothing of training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "pytorch_lightning", "lightning", "hydra", "omegaconf", "duckdb", "onnx",
                                  "onnxscript", "wandb", "scipy", "pandas", "rich", "data"):
            raise ModuleNotFoundError(f"a serving process wants {name}")

sys.meta_path.insert(0, Absent())
import towers.index
assert not {"faiss", "onnxruntime"} & set(sys.modules), "importing the package alone must be light"
from towers.index import Attribute, Retriever

retriever = Retriever.open(sys.argv[1])
ids, scores = retriever.recommend({"field": "law"}, 3, filter=Attribute("place") == "Berlin")
assert len(ids) == 3
print("answered")
"""


def test_an_answer_without_the_training_libraries(bundle: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(bundle)], env=environment, capture_output=True, text=True
    )
    assert done.stdout.strip() == "answered", done.stderr
