"""A run → metrics and predictions: ``python eval.py run=PATH task=test`` writes ``PATH/eval/TASK``."""

import hydra
from omegaconf import DictConfig

from pipeline.console import user_errors
from pipeline.datasets import dataset_of
from pipeline.evaluating import evaluate_run, given
from pipeline.runs import Run
from towers.index import Fusion


@hydra.main(version_base="1.3", config_path="configs", config_name="eval")
@user_errors
def main(config: DictConfig) -> None:
    """Rank one task of the run's dataset, or all."""
    run = Run.open(config.run)
    dataset = dataset_of(run)
    tasks = [config.task] if config.task else list(dataset.info["tasks"])
    fusion = Fusion(**config.fusion) if config.fusion.method else None
    moved = given(config.aggregate)
    evaluate_run(run, tasks, dataset=dataset, dim=config.dim, fusion=fusion, rerank=config.rerank, aggregate=moved)


if __name__ == "__main__":
    main()
