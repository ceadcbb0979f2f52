"""The training step end to end, on worlds small enough to know the answer."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from rich.console import Console

from tests.model.helpers import batch, contexts, full_model, ids_only, infos, table
from towers.errors import ConfigError
from towers.evaluation.task import Task
from towers.features import OOV, Batch, FeatureInfo, Kind, Ragged
from towers.model.callbacks import Clock, ProgressBar, StopOnNonFiniteLoss, Throughput, Trace
from towers.model.contrast import VectorLoss
from towers.model.encoders import EncoderSettings
from towers.model.fused_softmax import SampledSoftmax
from towers.model.history import HistorySettings
from towers.model.losses import binary, bpr, cosine_contrastive
from towers.model.mining import Mined
from towers.model.module import Retrieval, TrainingData
from towers.model.negatives import CrossBatch, Full, InBatch, Mixed, Popularity, Uniform
from towers.model.optimisers import OptimiserSettings
from towers.model.similarity import Similarity
from towers.model.tables import FeatureTable
from towers.model.tower import TowerSettings
from towers.model.two_tower import TwoTower
from towers.model.vector_losses import AlignmentUniformity, GeneralisedBinary, MultiPositive

# Lightning 2.6 asks torch 2.13's pytree in a way that torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

USERS, ITEMS = 5, 20
MF = TowerSettings(include=["id"], fusion="sum", body="none")


class Batches:
    """A loader: an iterable of batches, the same in every epoch."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def trainer(folder: Path, **changes: Any) -> pl.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu", "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_model_summary": False, "enable_progress_bar": False, "num_sanity_val_steps": 0,
        "default_root_dir": folder, "log_every_n_steps": 1,
    }  # fmt: skip
    return pl.Trainer(**{**settings, **changes})


def fit(module: Retrieval, folder: Path, batches: Batches, tasks: Batches | None = None, **changes: Any) -> pl.Trainer:
    resume = changes.pop("resume", None)
    t = trainer(folder, **{"limit_val_batches": 1.0 if tasks else 0, **changes})
    t.fit(module, batches, tasks or Batches([]), ckpt_path=resume, weights_only=True if resume else None)
    return t


def retrieval(seed: int = 0, sparse: bool = False, **changes: Any) -> Retrieval:
    torch.manual_seed(7)
    encoders = EncoderSettings(sparse_above=5 if sparse else None)
    model = full_model(
        user=TowerSettings(width=16, dropout=0.2, encoders=encoders),
        item=TowerSettings(width=12, id_dropout=0.3, encoders=encoders),
    )
    data = TrainingData(
        table(infos(), USERS), table(infos(), ITEMS, 1), np.ones(ITEMS, np.int64), 12, context_table=contexts()
    )
    settings: dict[str, Any] = {
        "sampler": partial(Mixed, samplers=[InBatch, partial(Uniform, n=6)]),
        "optimiser": OptimiserSettings(learning_rate=0.01, schedule="cosine", warmup=2),
        "seed": seed,
    }
    return Retrieval(model, data, **{**settings, **changes})


def loader(n: int = 6) -> Batches:
    return Batches([batch(8, ITEMS, USERS, seed=s) for s in range(n)])


def weights(module: Retrieval) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.model.parameters()])


@pytest.mark.parametrize("sparse", [False, True])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path, sparse: bool) -> None:
    runs = []
    for seed in (0, 0, 1):
        module = retrieval(seed, sparse)
        fit(module, tmp_path, loader(), gradient_clip_val=1.0)
        runs.append(weights(module))
        torch.rand(3)  # what happened to the global generator before a run must not matter
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path, sparse: bool, accumulate: int) -> None:
    more = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5}
    straight = retrieval(sparse=sparse)
    fit(straight, tmp_path, loader(), max_epochs=2, **more)

    first = fit(retrieval(sparse=sparse), tmp_path, loader(), max_epochs=1, **more)
    first.save_checkpoint(tmp_path / "c.ckpt")
    resumed = retrieval(sparse=sparse)
    with torch.no_grad():
        for p in resumed.model.parameters():
            p.add_(1.0)  # nothing of the fresh weights may survive
    fit(resumed, tmp_path, loader(), max_epochs=2, resume=tmp_path / "c.ckpt", **more)
    assert resumed.batches_seen == straight.batches_seen == 12
    assert torch.equal(weights(straight), weights(resumed))


def test_validation_does_not_change_training(tmp_path: Path) -> None:
    plain, validated = retrieval(), retrieval()
    fit(plain, tmp_path, loader())
    t = fit(
        validated, tmp_path, loader(), Batches([task("valid"), task("cold")]), val_check_interval=2, limit_val_batches=2
    )
    assert torch.equal(weights(plain), weights(validated))
    assert {"valid/recall@10", "cold/ndcg@20"} <= set(t.callback_metrics)


def task(name: str) -> Task:
    queries = batch(USERS, ITEMS, USERS, item=np.full(USERS, -1), weight=np.zeros(USERS, np.float32))
    return Task(
        name=name,
        query=queries.user.numpy(),
        batches=Batches([queries.map(lambda a: a.numpy())]),
        targets=Ragged(np.arange(USERS + 1), np.arange(USERS)),
        candidates=np.arange(ITEMS),
        exclude=Ragged(np.zeros(USERS + 1, np.int64), np.empty(0, np.int64)),
    )


def test_checkpoints_hold_weights_and_no_data() -> None:
    assert all(k.startswith("model.") for k in retrieval().state_dict())


def test_two_batches_never_share_their_random_numbers() -> None:
    module = retrieval()
    seen = []
    for _ in range(3):
        module._seed_this_batch()
        seen.append(torch.rand(1).item())
    assert len(set(seen)) == 3


def mf(
    users: int, items: int, sampler: Any = Full, posted: Any = None, expires: Any = None, **changes: Any
) -> Retrieval:
    user_infos, user_table = ids_only(users)
    item_infos, item_table = ids_only(items)
    torch.manual_seed(0)
    model = TwoTower(user_infos, item_infos, dim=16, user=MF, item=MF, history=HistorySettings(pooling="none"))
    data = TrainingData(user_table, item_table, np.ones(items, np.int64), None, posted, expires)
    return Retrieval(model, data, sampler=sampler, **changes)


def plain(user: list[int], item: list[int], known: list[list[int]] | None = None, **changes: Any) -> Batch:
    b = len(user)
    lists = known or [[] for _ in user]
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])])
    none = np.empty((b, 0), np.int64)
    values = np.array([x for one in lists for x in one], np.int64)
    return Batch(
        user=np.array(user), item=np.array(item), weight=np.ones(b, np.float32), history=none, history_action=none,
        history_age=none.astype(np.float32), known=Ragged(offsets, values), **changes,
    ).map(torch.as_tensor)  # fmt: skip


def test_a_tiny_world_is_learned_by_heart(tmp_path: Path) -> None:
    users = list(range(8))
    module = mf(8, 8, optimiser=OptimiserSettings(learning_rate=0.1), ks=(1,))
    t = fit(module, tmp_path, Batches([plain(users, users)]), max_epochs=60)
    assert t.callback_metrics["train/loss"] < 0.01
    e = module.embedder()
    (queries,) = e.embed_queries([plain(users, users)])
    assert (queries @ e.embed_items().T).argmax(1).tolist() == users


def gradients(module: Retrieval, one: Batch) -> torch.Tensor:
    """[I]: how much each item's embedding is moved by one step."""
    module.trainer = trainer(Path(), log_every_n_steps=99)
    module.training_step(one, 0).backward()
    table = module.model.item_inputs.encoders["feature_id"].table.weight
    return table.grad[3:].norm(dim=1)


def test_other_positives_of_the_user_are_no_negatives() -> None:
    moved = gradients(mf(2, 5), plain([0], [1], [[1, 3]]))
    assert (moved > 0).tolist() == [True, True, True, False, True]


def test_jobs_that_were_not_live_are_no_negatives() -> None:
    posted, expires = np.array([0, 0, 50, 0, 0]), np.array([99, 99, 99, 10, 99])
    batch_ = plain([0], [1], time=np.array([20]))
    moved = gradients(mf(2, 5, posted=posted, expires=expires), batch_)
    assert (moved > 0).tolist() == [True, True, False, False, True]


def test_the_step_is_the_full_softmax_when_every_item_is_drawn() -> None:
    module = mf(3, 5)
    one = plain([0, 2], [1, 4])
    one.weight = torch.tensor([1.0, 3.0])
    module.trainer = trainer(Path(), log_every_n_steps=99)
    loss = module.training_step(one, 0)
    e = module.embedder()
    (queries,) = e.embed_queries([one])
    losses = torch.nn.functional.cross_entropy(queries @ e.embed_items().T, one.item, reduction="none")
    assert torch.allclose(loss, (losses * one.weight).sum() / 4, atol=1e-6)


@pytest.mark.parametrize("sampler", [InBatch, partial(Uniform, n=3)])
def test_correcting_the_positive_moves_its_logit_by_log_q(sampler: Any) -> None:
    one = plain([0, 1, 2], [1, 4, 4])
    losses = {}
    for correct in (False, True):
        caught: list[torch.Tensor] = []
        module = mf(3, 5, sampler, correct_positive=correct, loss=lambda p, n, w, c=caught: c.append(p) or p.sum())
        module.trainer = trainer(Path(), log_every_n_steps=99)
        module.training_step(one, 0)
        losses[correct] = caught[0]
    log_q = module.sampler.log_q(one.item, 3)
    assert torch.allclose(losses[True], losses[False] - log_q)


def test_in_batch_positives_are_embedded_once_and_rightly() -> None:
    module = mf(3, 5, InBatch)
    positives = torch.tensor([4, 1, 4])
    draw = module.sampler(positives)
    columns = torch.full((5,), 2)
    columns[draw.rows] = torch.arange(2)
    own, candidates = module.embed_items(positives, draw.rows, columns)
    every = module.embedder().embed_items()
    assert torch.allclose(own, every[positives])
    assert torch.allclose(candidates, every[[1, 4]])


def test_a_job_never_seen_is_ranked_by_its_content(tmp_path: Path) -> None:
    """Users want one of two kinds of jobs; a job without events has its kind and the id "unknown"."""
    n = 12
    kind = FeatureInfo("kind", Kind.CATEGORICAL, 0, 5, np.array([0, 0, 0, 6, 6]))
    item_infos = [FeatureInfo("id", Kind.ID, 0, n + 3, None), kind]
    ids = np.r_[np.arange(n) + 3, OOV, OOV].astype(np.int32)
    kinds = np.r_[np.arange(n) % 2, 0, 1].astype(np.int32) + 3
    user_infos, user_table = ids_only(2)
    torch.manual_seed(0)
    item = TowerSettings(fusion="sum", body="none", id_dropout=0.3)
    model = TwoTower(user_infos, item_infos, dim=8, user=MF, item=item, history=HistorySettings(pooling="none"))
    data = TrainingData(user_table, FeatureTable({"id": ids, "kind": kinds}), np.r_[np.ones(n), 0, 0].astype(np.int64))
    module = Retrieval(model, data, sampler=Full, optimiser=OptimiserSettings(learning_rate=0.05))
    known = [[j for j in range(n) if j % 2 == u % 2] for u in range(2)]
    users, items = [j % 2 for j in range(n)], list(range(n))
    fit(module, tmp_path, Batches([plain(users, items, [known[u] for u in users])]), max_epochs=60)
    e = module.embedder()
    (queries,) = e.embed_queries([plain([0, 1], [0, 0])])
    cold = queries @ e.embed_items(np.array([n, n + 1])).T
    assert cold[0, 0] > cold[0, 1] + 1
    assert cold[1, 1] > cold[1, 0] + 1


def test_a_schedule_without_an_end_is_refused() -> None:
    module = mf(2, 3, optimiser=OptimiserSettings(schedule="linear"))
    with pytest.raises(ConfigError, match=r"set trainer\.max_epochs"):
        module.configure_optimizers()


def test_only_dense_gradients_are_clipped(tmp_path: Path) -> None:
    module = retrieval(sparse=True)
    optimiser = module.configure_optimizers()["optimizer"]
    module.trainer = trainer(tmp_path, log_every_n_steps=99)
    (1000 * module.training_step(batch(8, ITEMS, USERS), 0)).backward()
    sparse = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None and p.grad.is_sparse}
    module.configure_gradient_clipping(optimiser, 0.1)
    dense = [p.grad.norm() for p in module.parameters() if p.grad is not None and not p.grad.is_sparse]
    assert torch.stack(dense).norm() == pytest.approx(0.1, rel=1e-4)
    assert sparse
    for name, p in module.named_parameters():
        if name in sparse:
            assert torch.equal(p.grad.to_dense(), sparse[name].to_dense())


def test_values_are_clipped_where_the_trainer_says_so(tmp_path: Path) -> None:
    """Each number by itself, not the norm of all; a sparse table's stay as they are here too."""
    module = retrieval(sparse=True)
    before: dict[str, torch.Tensor] = {}
    after: dict[str, torch.Tensor] = {}
    clip = module.configure_gradient_clipping

    def watched(*args: Any, **kwargs: Any) -> None:
        for found, do in ((before, lambda: None), (after, lambda: clip(*args, **kwargs))):
            do()
            found |= {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}

    module.configure_gradient_clipping = watched  # type: ignore[method-assign]
    fit(module, tmp_path, loader(), limit_train_batches=1, gradient_clip_val=1e-4, gradient_clip_algorithm="value")
    assert any(g.is_sparse for g in before.values())
    for name, grad in before.items():
        expected = grad if grad.is_sparse else grad.clamp(-1e-4, 1e-4)
        assert torch.equal(after[name].to_dense(), expected.to_dense()), name
    assert any(not g.is_sparse and (g.abs() > 1e-4).any() for g in before.values()), "there was something to clip"


def test_mixed_precision_takes_a_step(tmp_path: Path) -> None:
    module = retrieval(sparse=True)
    before = weights(module)
    fit(module, tmp_path, loader(2), precision="bf16-mixed")
    assert weights(module).isfinite().all()
    assert not torch.equal(before, weights(module))


def test_a_loss_that_is_no_number_stops_the_run_with_advice(tmp_path: Path) -> None:
    module = retrieval(loss=lambda p, n, w: (p * float("nan")).sum())
    with pytest.raises(ConfigError, match=r"optimiser\.learning_rate"):
        fit(module, tmp_path, loader(2), callbacks=[StopOnNonFiniteLoss(every=1)])


def test_throughput_and_progress_are_told_without_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told_by = {"enable_progress_bar": True, "callbacks": [Throughput(), ProgressBar()]}
    t = fit(retrieval(), tmp_path, loader(), Batches([task("valid")]), max_epochs=2, **told_by)
    assert t.callback_metrics["throughput/examples_per_s"] > 0
    told = capsys.readouterr().err
    assert "epoch 1/2  loss " in told
    assert re.search(r"examples/s  data \d+%  \d\.\d GiB", told)
    assert 0 <= t.callback_metrics["throughput/data_wait"] <= 1
    assert "valid/recall@10" in told


class Bars(ProgressBar):
    """Remembers how far each bar was when it was shown."""

    def __init__(self) -> None:
        super().__init__(console=Console(file=io.StringIO(), force_terminal=True))
        self.shown: list[tuple[float, float | None]] = []

    def _begin(self, trainer: pl.Trainer, done: int = 0) -> None:
        super()._begin(trainer, done)
        assert self.bar is not None
        self.shown.append((self.bar.tasks[0].completed, self.bar.tasks[0].total))


class Saved(pl.Callback):
    """Saves a checkpoint after the third batch."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, i: int) -> None:
        if i == 2 and trainer.current_epoch == 0:
            trainer.save_checkpoint(f"{trainer.default_root_dir}/three.ckpt")


class Resumable(Batches):
    """As the loader of a run, see ``data.batches.TrainBatches``."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def test_the_bar_of_a_resumed_epoch_begins_where_it_stopped(tmp_path: Path) -> None:
    """Or what was done before would count as done at once, and time left would be far too short."""
    first, second = Bars(), Bars()
    batches, on = Resumable(loader().batches), {"enable_progress_bar": True, "max_epochs": 2}
    fit(retrieval(), tmp_path, batches, callbacks=[first, Saved()], **on)
    assert first.shown == [(0, 6), (0, 6), (0, 6)], "before the first epoch, and at the start of both"
    fit(retrieval(), tmp_path, batches, callbacks=[second], resume=str(tmp_path / "three.ckpt"), **on)
    assert second.shown == [(2, 6), (0, 6)]


def test_waiting_is_what_passes_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of 3 and 4 s, after 1 and 2 s of waiting, of 10 examples each."""
    now = iter([0.0, 1.0, 4.0, 6.0, 10.0])
    monkeypatch.setattr("towers.model.callbacks.time.perf_counter", lambda: next(now))
    clock = Clock()
    for _ in range(2):
        clock.step_begins()
        clock.step_ends(10)
    assert (clock.rate, clock.wait) == (2.0, 0.3)


def test_a_trace_holds_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    fit(retrieval(), tmp_path, loader(), callbacks=[Trace(str(tmp_path), skip=1, steps=2)])
    names = [e["name"] for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]]
    assert sum(n.startswith("Optimizer.step") for n in names) == 2
    assert "aten::embedding_bag" in names


@pytest.mark.parametrize(("batches", "traced"), [(1, 1), (2, 1), (4, 2), (5, 3)])
def test_a_short_epoch_is_traced_in_its_second_half(tmp_path: Path, batches: int, traced: int) -> None:
    """``debug=profiler`` skips four batches, which may be all that there are."""
    said = io.StringIO()
    trace = Trace(str(tmp_path), skip=4, steps=8, console=Console(file=said))
    fit(retrieval(), tmp_path, loader(), limit_train_batches=batches, max_epochs=2, callbacks=[trace])
    names = [e["name"] for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]]
    assert sum(n.startswith("Optimizer.step") for n in names) == traced
    assert said.getvalue().startswith(f"batches traced: {traced}, in {tmp_path / 'trace.json'}, for ")


def test_a_training_that_ends_before_its_trace_begins_says_so(tmp_path: Path) -> None:
    said = io.StringIO()
    fit(retrieval(), tmp_path, loader(), max_steps=2, callbacks=[Trace(str(tmp_path), console=Console(file=said))])
    assert said.getvalue() == "no trace: batches trained: 2; raise limit_train_batches or max_epochs\n"
    assert not (tmp_path / "trace.json").exists()


def test_jobs_shown_and_not_taken_are_pushed_down_and_positives_among_them_are_not() -> None:
    """The loss over the draw is silent; user 0 took 1, knows 3, and was shown 2, 3 and nothing else."""
    one = plain([0], [1], [[1, 3]])
    one.impressions = torch.tensor([[2, 3, -1]])
    moved = gradients(mf(2, 5, loss=lambda p, n, w: p.sum() * 0, impression_weight=2.0), one)
    assert (moved > 0).tolist() == [False, True, True, False, False]


def test_the_term_of_impressions_is_a_conditional_logit() -> None:
    module = mf(2, 5, loss=lambda p, n, w: p.sum() * 0, impression_weight=0.5)
    one = plain([0, 1], [1, 2])
    one.impressions = torch.tensor([[2, 4], [-1, -1]])
    module.trainer = trainer(Path(), log_every_n_steps=99)
    (queries,) = module.embedder().embed_queries([one])
    scores = queries @ module.embedder().embed_items().T
    choice = torch.nn.functional.cross_entropy(scores[:1, [1, 2, 4]], torch.tensor([0]))
    assert torch.allclose(module.training_step(one, 0), 0.5 * choice / 2)  # the second example was shown nothing


def test_prefixes_are_trained_as_vectors_of_their_own() -> None:
    one = plain([0, 2], [1, 4])
    losses = {}
    for prefixes in ([], [4, 16]):
        module = mf(3, 5, matryoshka=prefixes)
        module.trainer = trainer(Path(), log_every_n_steps=99)
        losses[len(prefixes)] = module.training_step(one, 0)
    e = module.embedder()
    (queries,) = e.embed_queries([one])
    short = torch.nn.functional.cross_entropy(queries[:, :4] @ e.embed_items()[:, :4].T, one.item)
    assert torch.allclose(losses[2], (losses[0] + short) / 2, atol=1e-6)  # 16 is the whole vector
    with pytest.raises(ConfigError, match="between 1 and 16"):
        mf(3, 5, matryoshka=[17])


def test_plain_scores_where_the_loss_wants_them() -> None:
    caught: list[torch.Tensor] = []
    module = mf(3, 5, partial(Uniform, n=2), correct_negatives=False, loss=lambda p, n, w: caught.append(n) or p.sum())
    module.trainer = trainer(Path(), log_every_n_steps=99)
    one = plain([0], [1])
    module.training_step(one, 0)
    module.batches_seen = 0
    module._seed_this_batch()
    rows = module.sampler(one.item).rows
    e = module.embedder()
    (query,) = e.embed_queries([one])
    scores = (query @ e.embed_items().T)[:, rows].masked_fill(rows == 1, -float("inf"))
    assert torch.allclose(caught[0], scores)


STATEFUL = {
    "memory": partial(Mixed, samplers=[partial(CrossBatch, n=20), partial(Uniform, n=4)]),
    "mined": partial(Mined, base=partial(Uniform, n=4), n=3, nearest=5, start=2, ramp=3, every=4, pool=10),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_run_whose_sampler_remembers_is_resumed_bit_for_bit(tmp_path: Path, name: str) -> None:
    straight = retrieval(sampler=STATEFUL[name])
    fit(straight, tmp_path, loader(), max_epochs=2)
    first = fit(retrieval(sampler=STATEFUL[name]), tmp_path, loader(), max_epochs=1)
    first.save_checkpoint(tmp_path / "c.ckpt")
    resumed = retrieval(sampler=STATEFUL[name])
    fit(resumed, tmp_path, loader(), max_epochs=2, resume=tmp_path / "c.ckpt")
    assert torch.equal(weights(straight), weights(resumed))


def test_mining_leaves_the_step_as_random_and_the_model_as_training_as_it_was() -> None:
    """Its table comes from the model in evaluation mode; a pool that is everything needs no random number."""
    module = retrieval(sampler=partial(Mined, base=partial(Uniform, n=4), n=3, nearest=5, start=0))
    module._seed_this_batch()
    before = torch.get_rng_state()
    module.sampler.refresh(0, lambda rows: module.embedder().embed_items(rows.numpy()))
    assert torch.equal(before, torch.get_rng_state())
    assert module.model.training
    assert (module.sampler.neighbours >= 0).all()


@pytest.mark.parametrize("loss", [SampledSoftmax(), MultiPositive(), GeneralisedBinary(), AlignmentUniformity()])
def test_losses_over_vectors_take_a_step_in_any_precision(tmp_path: Path, loss: VectorLoss) -> None:
    for precision in ("32-true", "bf16-mixed"):
        module = retrieval(sparse=True, loss=loss, sampler=partial(Mined, base=InBatch, n=3, nearest=5, start=0))
        before = weights(module)
        fit(module, tmp_path, loader(2), precision=precision)
        assert weights(module).isfinite().all()
        assert not torch.equal(before, weights(module))


LEARNERS: dict[str, dict[str, Any]] = {
    "margin": {"loss": SampledSoftmax(1.0)},
    "bpr": {"loss": bpr, "correct_negatives": False, "sampler": partial(Uniform, n=4)},
    "binary": {"loss": binary, "correct_negatives": False, "sampler": partial(Uniform, n=4)},
    "nce": {"loss": binary, "correct_positive": True, "sampler": partial(Popularity, n=6)},
    "generalised binary": {"loss": GeneralisedBinary(), "correct_negatives": False, "sampler": partial(Uniform, n=4)},
    "cosine contrastive": {"loss": partial(cosine_contrastive, negative_weight=10.0), "correct_negatives": False},
    "alignment": {"loss": AlignmentUniformity(), "sampler": InBatch},
    "multi-positive": {"loss": MultiPositive()},
    "cross-batch": {"sampler": partial(CrossBatch, n=16)},
    "mined": {"sampler": partial(Mined, base=partial(Uniform, n=2), n=2, nearest=3, start=5, ramp=5, every=5)},
}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_loss_and_sampler_learns_a_tiny_world_by_heart(tmp_path: Path, name: str) -> None:
    users = list(range(8))
    cosine = name in ("cosine contrastive", "alignment")
    module = mf(8, 8, **{"optimiser": OptimiserSettings(learning_rate=0.1), "ks": (1,), **LEARNERS[name]})
    module.model.similarity = Similarity("cosine" if cosine else "dot")
    fit(module, tmp_path, Batches([plain(users, users)]), max_epochs=60)
    e = module.embedder()
    (queries,) = e.embed_queries([plain(users, users)])
    assert (queries @ e.embed_items().T).argmax(1).tolist() == users
