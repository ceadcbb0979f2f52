"""Run folders: ``runs/NAME/DATE/`` with the resolved config, checkpoints, metrics and where it all came from."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from data.prepared import PreparedDataset
from data.writer import sha256, write_json
from towers.errors import ConfigError
from towers.features import Featurizer, Schema

_LIBRARIES = ("torch", "pytorch-lightning", "hydra-core", "numpy", "pyarrow", "duckdb", "faiss-cpu", "faiss-gpu",
              "onnx", "onnxruntime")  # fmt: skip


BASELINE = "baseline.npz"  # beside the checkpoints of models


class Run:
    """A run folder.

    Args:
        folder: ``runs/NAME/DATE``, or the link ``runs/NAME/latest``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    @classmethod
    def open(cls, path: str | None) -> Run:
        """An existing run.

        Raises:
            ConfigError: there is none.
        """
        if not path:
            raise ConfigError("set run=PATH, e.g. run=runs/market/latest")
        folder = Path(path)
        if not (folder / "config.yaml").is_file():
            raise ConfigError(f"no run at {folder} (no config.yaml there); train one, or correct run=PATH")
        return cls(folder)

    @property
    def config(self) -> DictConfig:
        """The resolved config that the run was made with."""
        config = OmegaConf.load(self.folder / "config.yaml")
        assert isinstance(config, DictConfig)
        return config

    @property
    def checkpoints(self) -> Path:
        """Folder of ``best.ckpt``, ``last.ckpt`` and the one before it, ``previous.ckpt``."""
        return self.folder / "checkpoints"

    @property
    def weights(self) -> Path:
        """The checkpoint that evaluation and export read, or what a baseline has fitted.

        Raises:
            ConfigError: the run has not come to a checkpoint.
        """
        for name in ("best.ckpt", "last.ckpt", "previous.ckpt", BASELINE):
            if (self.checkpoints / name).is_file():
                return self.checkpoints / name
        raise ConfigError(
            f"no checkpoint in {self.checkpoints}; finish the training: python train.py resume={self.folder}"
        )

    @property
    def metrics(self) -> dict[str, Any]:
        """``metrics.json``; empty before the run has finished."""
        path = self.folder / "metrics.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @property
    def provenance(self) -> dict[str, Any]:
        """``provenance.json``."""
        return dict(json.loads((self.folder / "provenance.json").read_text()))

    @property
    def lineage(self) -> dict[str, Any]:
        """What a run that goes on from this one says of it."""
        told = self.provenance
        kept = ("git_sha", "dataset_files_sha256", "seed", "init_from")
        return {"run": str(self.folder), "weights_sha256": sha256(self.weights), **{k: told.get(k) for k in kept}}

    @property
    def schema(self) -> Schema:
        """What the data declared.

        Raises:
            ConfigError: the run kept nothing of the kind.
        """
        path = self.folder / "schema.json"
        if not path.is_file():
            raise ConfigError(
                f"{self.folder} has no schema.json: it did not begin as a run of this version; train it again"
            )
        return Schema.from_json(json.loads(path.read_text()))

    def featurizer(self, side: str) -> Featurizer:
        """The features of a side as they were fitted on the data of this run, whatever has become of these."""
        return Featurizer.load(self.folder / "vocab", side, self.schema.side(side))

    def begin(self, config: DictConfig, dataset: PreparedDataset) -> None:
        """Write the resolved config, the provenance, and what the weights mean: schema and vocabularies."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / "config.yaml").exists():  # a resumed run keeps the record of its beginning
            return
        temporary = self.folder / ".config.yaml.tmp"
        OmegaConf.save(config, temporary, resolve=True)
        parent = config.get("init_from")
        origin = {"init_from": None if parent is None else Run.open(parent).lineage}
        write_json(self.folder / "provenance.json", {**provenance(dataset, config.seed), **origin})
        write_json(self.folder / "schema.json", dataset.schema.to_json())
        shutil.copytree(dataset.folder / "vocab", self.folder / "vocab", dirs_exist_ok=True)
        temporary.replace(self.folder / "config.yaml")

    def finish(self, metrics: dict[str, Any]) -> None:
        """Write the metrics and point ``latest`` at this run."""
        write_json(self.folder / "metrics.json", metrics)
        link = self.folder.parent / "latest"
        temporary = self.folder.parent / f".latest.{os.getpid()}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.folder.name)
        temporary.replace(link)


def provenance(dataset: PreparedDataset, seed: int) -> dict[str, Any]:
    """Where a run came from: code, data, versions, command."""

    def git(*args: str) -> str | None:
        try:
            here = Path(__file__).parent
            done = subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True)
            return done.stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "git_sha": git("rev-parse", "HEAD"),
        "git_dirty": bool(git("status", "--porcelain", "--untracked-files=no")),
        "dataset": str(dataset.folder),
        "dataset_sha256": sha256(dataset.folder / "dataset.json"),
        "dataset_files_sha256": dataset.files_sha256,
        "seed": seed,
        "command": sys.argv,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "versions": versions,
    }
