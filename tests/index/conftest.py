"""The small market, its bundle, and that bundle opened."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.index.small_market import END, Market
from towers.index.bundle import write_bundle
from towers.index.retriever import Retriever


@pytest.fixture(scope="session")
def market() -> Market:
    return Market()


@pytest.fixture(scope="session")
def bundle(market: Market, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(market.contents(), tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="session")
def retriever(bundle: Path) -> Retriever:
    return Retriever.open(bundle)


@pytest.fixture
def at() -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=END)


@pytest.fixture
def fresh(market: Market, tmp_path: Path) -> Callable[..., Path]:
    """Writes a bundle of the market with some contents changed."""

    def write(**changes: Any) -> Path:
        return write_bundle(market.contents(**changes), tmp_path / "fresh")

    return write
