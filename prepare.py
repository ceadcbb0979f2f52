"""Raw logs → prepared dataset: ``python prepare.py data=NAME`` writes ``var/data/NAME``."""

import hydra
from omegaconf import DictConfig

from data.instants import iso
from pipeline.console import out, say, user_errors
from pipeline.datasets import ensure_prepared


@hydra.main(version_base="1.3", config_path="configs", config_name="prepare")
@user_errors
def main(config: DictConfig) -> None:
    """Prepare, and say what was found."""
    dataset = ensure_prepared(config, force=config.force)
    counts, rejected = dataset.info["counts"], dataset.info["rejected"]
    say(f"{counts['log_rows']:,} log rows: {counts['examples']:,} examples, {counts['history']:,} in histories, "
        f"{counts['users']:,} users, {counts['items']:,} items")  # fmt: skip
    if times := dataset.info["time_us"]:
        say(f"from {iso(times[0])} to {iso(times[1])}")
    say("positives: " + ", ".join(f"{name} {n:,}" for name, n in counts["positives"].items()))
    for fault, n in rejected.items():
        say(f"set aside: {n:,} rows, {fault}")
    out.print(dataset.folder, markup=False)


if __name__ == "__main__":
    main()
