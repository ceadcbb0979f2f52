"""Every config composes; every experiment takes a step; every sweep's settings are settings that exist."""

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

import train as train_verb  # registers the run_folder resolver
from data.spec import DatasetSpec
from pipeline.build import retrieval
from pipeline.checking import check_loss, check_precision, check_query, check_settings
from pipeline.datasets import dataset_spec, ensure_prepared
from pipeline.training import train
from towers.errors import ConfigError, DataError

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
SHARED = ROOT.parent / "shared"


def names(group: str) -> list[str]:
    return sorted(p.stem for p in (CONFIGS / group).glob("*.yaml"))


def composed(verb: str, *overrides: str) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(verb, list(overrides))


@pytest.mark.parametrize("verb", ["prepare", "train", "eval", "export", "query"])
def test_verbs_compose(verb: str) -> None:
    assert composed(verb) is not None


@pytest.mark.parametrize("name", names("data"))
def test_data_configs_are_valid(name: str) -> None:
    spec = dataset_spec(composed("prepare", f"data={name}"))
    assert isinstance(spec, DatasetSpec)
    assert spec.name == name


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (g, n)
        for g in ("model", "init", "negatives", "loss", "optimiser", "trainer", "logger", "debug")
        for n in names(g)
    ],
)
def test_groups_compose_and_resolve(group: str, name: str) -> None:
    OmegaConf.to_container(composed("train", f"{group}={name}"), resolve=True)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_the_first_line_is_the_command_that_uses_it(path: Path) -> None:
    lines = [x for x in path.read_text().splitlines() if not x.startswith("# @package")]
    assert lines[0].startswith(("# python ", "# What every verb knows")), lines[0]


@pytest.mark.parametrize(
    "name",
    sorted(str(p.relative_to(CONFIGS / "experiment").with_suffix("")) for p in CONFIGS.glob("experiment/**/*.yaml")),
)
def test_every_setting_of_an_experiment_is_taken(name: str) -> None:
    check_settings(composed("train", f"experiment={name}"), ("model", "negatives", "loss", "optimiser", "init"))


def test_settings_that_nothing_takes_are_named_with_what_there_is(tmp_path: Path) -> None:
    """Those that an experiment sets for another choice, and those that were misspelt, before anything is prepared."""
    said = ["experiment=xing16_coldjob", "negatives=in_batch", "+model.blocks.content.history.widht=3"]
    with pytest.raises(ConfigError) as e:
        train(composed("train", *said, f"var={tmp_path}"), tmp_path / "run", said)
    assert "- negatives.n: settings of InBatch are none; leave it out, or say '~negatives.n'" in str(e.value)
    assert "- model.blocks.content.history.widht: settings of HistorySettings are pooling, table, length" in str(
        e.value
    )
    assert not any(tmp_path.iterdir())
    with pytest.raises(ConfigError, match=r"index\.nprobes: settings of"):
        check_settings(composed("export", "run=x", "+index.nprobes=3"), ("index",))
    with pytest.raises(ConfigError, match=r"loss\._target_: found 'towers\.losses\.Nothing', expected a class"):
        check_settings(composed("train", "loss._target_=towers.losses.Nothing"), ("loss",))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (["init=lsa"], r"init\.item: not set"),
        (
            ["experiment=baselines/xing16_item_knn", "init=svd", "group_weight=3"],
            r"init\._target_=.*, group_weight=3: a bas",
        ),
        (
            ["experiment=baselines/xing16_item_knn", "grad_cache=5", "matryoshka=[4]"],
            r"matryoshka=\[4\], grad_cache=5: a",
        ),
        (["impression_weight=0.5"], r"impression_weight=0\.5: there are no impressions \(impressions=0\)"),
    ],
)
def test_settings_that_nothing_would_read_are_refused(said: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        train(composed("train", *said, f"var={tmp_path}"), tmp_path / "run", said)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("said", "cures"),
    [
        (["loss=cosine_contrastive"], ""),
        (["loss=cosine_contrastive", "model.similarity.temperature=0.1"], r"model\.similarity\.temperature=1$"),
        (
            ["loss=cosine_contrastive", "model.similarity.kind=dot", "correct_negatives=true"],
            r"model\.similarity\.kind=cosine correct_negatives=false correct_positive=false$",
        ),
        (["loss=alignment_uniformity", "model.similarity.kind=dot"], r"model\.similarity\.kind=cosine$"),
        (["loss=generalised_binary", "negatives=uniform"], ""),
        (["loss=generalised_binary", "negatives=popularity"], "negatives=uniform$"),
        (["loss=binary", "negatives=uniform", "correct_negatives=true"], "correct_positive=true$"),
        (["loss=binary", "negatives=popularity", "correct_negatives=true", "correct_positive=true"], ""),
        (["loss=bpr", "negatives=uniform", "correct_positive=true"], "correct_negatives=false correct_positive=false$"),
    ],
)
def test_a_loss_goes_with_the_similarity_and_the_corrections_of_its_paper(
    said: list[str], cures: str, prepared: Path
) -> None:
    """Whatever an experiment has set: it comes after the loss's own config."""
    config = composed("train", "experiment=market", *said, *SMALL_MARKET, f"var={prepared}")
    module = retrieval(config, ensure_prepared(config))
    if not cures:
        check_loss(module)
        return
    with pytest.raises(ConfigError, match=cures):
        check_loss(module)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_in_half_precision_are_refused_with_the_cure(precision: str, prepared: Path) -> None:
    config = composed("train", "experiment=market", f"trainer.precision={precision}", *SMALL_MARKET, f"var={prepared}")
    with pytest.raises(ConfigError, match=rf"{precision}, which .* set trainer\.precision=bf16-mixed"):
        retrieval(config, ensure_prepared(config))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed", "bf16", "64-true", 16])
def test_other_precisions_are_the_trainers_matter(precision: str | int) -> None:
    check_precision(composed("train", "experiment=market", f"trainer.precision={precision}"))


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (["item=5", "at=export", "exclude=[7]"], ""),
        (["item=5", "explain=true", "fusion.method=sum"], "fusion.method=sum, explain=True: only a user's request"),
        (["item=5", "context={query: nurse}"], "context={'query': 'nurse'}: only a user's request"),
        (["item=5", "retrieve=users", "at=export"], "at=export: users are compared as they were at the end"),
        (["user=5", "explain=true", "fusion.method=sum", "at=export"], ""),
    ],
)
def test_what_a_query_would_not_read_is_refused(said: list[str], told: str) -> None:
    config = composed("query", "bundle=x", *said)
    if not told:
        check_query(config)
        return
    with pytest.raises(ConfigError, match=re.escape(told)):
        check_query(config)


def test_a_block_that_is_switched_off_is_not_checked() -> None:
    """``init=none`` leaves what an experiment set for the closed form."""
    config = composed("train", "experiment=xing16_coldjob", "init=none")
    assert config.init["_target_"] is None
    check_settings(config, ("model", "negatives", "loss", "optimiser", "init"))


SMALL_MARKET = ["data.generate.users=300", "data.generate.jobs=200", "data.generate.impressions=20000"]
SMALL = {"market": SMALL_MARKET, "melo": ["data.generate.partners=1"]}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where data are prepared once for all experiments."""
    return tmp_path_factory.mktemp("prepared")


@pytest.mark.slow
@pytest.mark.parametrize("name", names("experiment"))
def test_experiments_take_a_step(name: str, prepared: Path, tmp_path: Path) -> None:
    overrides = [f"experiment={name}", "logger=none", "+trainer.limit_train_batches=1", "trainer.max_epochs=1"]
    places = [f"var={prepared}", f"runs={tmp_path}/runs", "evaluate=[]", "threads=1"]
    config = composed("train", *overrides, *places)
    generated = config.data.get("generate")
    if generated:
        config = composed("train", *overrides, *SMALL[generated.get("kind", "market")], *places)
    source = Path(config.data.source if not generated else generated.get("melo", ROOT))
    if not source.exists():
        pytest.skip(f"needs the real data at {source}")
    if config.get("init"):  # what takes a minute at full width
        for part in (config.model, *config.model.get("blocks", {}).values()):
            if "dim" in part:
                part.dim = 16
    try:
        value = train(config, tmp_path / "run")
    except DataError as e:
        if "no such file" in str(e):
            pytest.skip(f"needs the real data: {e}")
        raise
    except ConfigError as e:
        if "text encoder" in str(e):
            pytest.skip(f"needs a pretrained encoder: {e}")
        raise
    assert value is not None
    assert 0 <= value <= 1


@pytest.fixture(scope="module")
def small_market(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for a market that is generated and prepared once."""
    places = [f"var={tmp_path_factory.mktemp('var')}", f"runs={tmp_path_factory.mktemp('runs')}"]
    short = ["logger=none", "evaluate=[]", "threads=1", "+trainer.limit_train_batches=2", "trainer.max_epochs=1"]
    return ["experiment=market", "model.dim=16", "batch_size=64", *short, *SMALL_MARKET, *places]


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice",
    [
        *(f"{group}={name}" for group in ("loss", "negatives") for name in names(group)),
        "negatives=mined negatives.start=0",
        "loss=binary correct_negatives=true correct_positive=true",
        "matryoshka=[4,8]",
        "model=mixture negatives=uniform negatives.n=64",
        "model=multi_task data.actions.save.weight=1 data.actions.apply.weight=2",
        "model=multi_task data.actions.apply.weight=2 model.heads.rank=0 model.heads.calibrated=true loss=binary",
        "model=hybrid model.history.length_power=1.0",
        "+data.select=match",
    ],
)
def test_losses_and_negatives_take_a_step(choice: str, small_market: list[str], tmp_path: Path) -> None:
    value = train(composed("train", *small_market, *choice.split()), tmp_path / "run")
    assert value is not None
    assert 0 <= value <= 1


def corners(parameters: dict[str, Any]) -> list[list[str]]:
    """Settings at the ends of every range and at every listed value: each value occurs at least once."""
    options = {}
    for key, p in parameters.items():
        options[key] = p.get("values") or ([p["value"]] if "value" in p else [p["min"], p["max"]])
    longest = max(len(v) for v in options.values())
    cycles = {k: itertools.cycle(v) for k, v in options.items()}
    return [[f"{k}={next(c)}" for k, c in cycles.items()] for _ in range(longest)]


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_sweeps_compose(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text())
    assert (ROOT / sweep["program"]).is_file()
    assert "${args_no_hyphens}" in sweep["command"], "Hydra takes key=value without hyphens"
    for overrides in corners(sweep["parameters"]):
        config = composed("train", *overrides)
        metric = f"{config.data.get('select', 'valid')}/{config.metric}"
        assert sweep["metric"]["name"] == metric, "the sweep optimises another metric than the run selects by"
        assert sweep["metric"]["goal"] == "maximize"


def test_a_new_run_gets_a_folder_of_its_own_and_a_resumed_one_its_old(tmp_path: Path) -> None:
    new = train_verb.run_folder(None, "runs", "market", None)
    assert new.startswith(str(Path("runs") / "market"))
    (tmp_path / "config.yaml").touch()
    assert train_verb.run_folder(str(tmp_path), "runs", "market", None) == str(tmp_path)
