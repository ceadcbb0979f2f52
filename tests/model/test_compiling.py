"""Compiled towers are the towers: the same numbers, the same names, the same files."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.model.helpers import full_model
from towers.errors import ConfigError
from towers.model import compiling
from towers.model.compiling import compile_towers, compiler
from towers.model.encoders import Lookup
from towers.model.history import HistorySettings
from towers.model.tower import Tower, TowerSettings

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler is found")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Kernels of this test alone, compiled in this process."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor, "compile_threads", 1)
    monkeypatch.setattr(inductor, "cpp_cache_precompile_headers", False)  # two kernels do not pay for them
    monkeypatch.setattr(inductor.cpp, "vec_isa_ok", True)  # what the processor says of itself is enough


def step(tower: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output ``[n, D]``, gradients of the input ``[n, F]`` and of the weights."""
    x = x.clone().requires_grad_()
    tower.zero_grad()
    y = tower(x)
    y.sin().sum().backward()
    return [y.detach(), *(p.grad.clone() for p in (x, *tower.parameters()) if p.grad is not None)]


@needs_compiler
@pytest.mark.slow
# torch imports its own deprecated parts on the way to its compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_compiled_tower_computes_and_learns_as_before(alone: None) -> None:
    """Outputs and gradients, for two numbers of rows."""
    torch.manual_seed(0)
    eager = Tower(12, 8, TowerSettings(layers=1)).double()  # so that rounding explains nothing
    with torch.no_grad():
        for p in eager.parameters():  # blocks start at zero, where a wrong one would show nothing
            p.normal_(std=0.5)
    compiled = copy.deepcopy(eager)
    assert compile_towers(nn.ModuleList([compiled])) == 1
    counts = torch._dynamo.utils.counters
    counts.clear()
    for rows in (9, 17):
        x = torch.randn(rows, 12, dtype=torch.float64)
        for a, b in zip(step(eager, x), step(compiled, x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert counts["stats"]["unique_graphs"] == 1, "one compilation serves any number of rows"


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_a_model_has_the_same_names_and_only_towers_are_compiled() -> None:
    eager, model = full_model(), full_model()
    assert compile_towers(model) == 2
    assert list(model.state_dict()) == list(eager.state_dict())
    eager.load_state_dict(model.state_dict())
    model.load_state_dict(eager.state_dict())
    changed = [type(m) for m in model.modules() if m._compiled_call_impl is not None]
    assert changed == [Tower, Tower]
    assert any(isinstance(m, Lookup) for m in model.modules())
    assert all(m._compiled_call_impl is None for m in copy.deepcopy(model).modules()), "an exported copy is plain"


def test_towers_without_layers_have_nothing_to_compile() -> None:
    """Matrix factorisation, and ``model=hybrid``."""
    bare = TowerSettings(include=["id"], fusion="sum", body="none")
    with pytest.raises(ConfigError, match="the towers of this model have no layers"):
        compile_towers(full_model(user=bare, item=bare, history=HistorySettings(pooling="none")))


def test_without_a_compiler_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler.*install g\+\+"):
        compile_towers(full_model())
