"""A run → a served index: ``python export.py run=PATH index=flat`` writes a bundle and prints its path last."""

import hydra
from omegaconf import DictConfig

from pipeline.console import out, user_errors
from pipeline.exporting import export


@hydra.main(version_base="1.3", config_path="configs", config_name="export")
@user_errors
def main(config: DictConfig) -> None:
    """Embed the catalogue, build and measure the index, write the bundle."""
    out.print(export(config), markup=False)


if __name__ == "__main__":
    main()
