"""Fixtures that several test files share. What takes seconds to import is imported by those alone
that use it."""

import os
import shutil
import sys

import pytest

# Read when torch and numpy are imported. Test processes share the cores; threads that wait for one
# another make t-SNE twenty times slower.
THREADS = int(os.environ.setdefault("OMP_NUM_THREADS", "1"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox --headless --disable-gpu --disable-background-networking "
         "--disable-component-update --disable-sync --no-first-run").split()  # fmt: skip


@pytest.fixture(autouse=True)
def few_threads():
    """A script that takes all cores for itself leaves them to the next test."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(THREADS)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders `visual` and `audio` of tiny encoders in the published layout, which no test
    changes."""
    from tests.helpers.tiny import save_models

    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def encoders(models):
    """The tiny encoders by kind of media, which no test changes, and what reads media for them."""
    from utils.data.models import load_encoder

    return {kind: load_encoder(models / kind, kind) for kind in ("visual", "audio")}


@pytest.fixture(scope="session")
def readers(encoders):
    """What reads media for the tiny encoders, by kind."""
    return {kind: reader for kind, (_, reader) in encoders.items()}


@pytest.fixture
def one_process(monkeypatch):
    """Accelerate starts in this process alone, on the CPU, and leaves nothing for other tests."""
    from accelerate.state import AcceleratorState

    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def mini_world(tmp_path_factory):
    """A folder with a small mini world and its cache, which grow as scripts need them (see
    `tests.helpers.scripts.places`), and the checkpoints and figures that they leave."""
    return tmp_path_factory.mktemp("mini-world")


@pytest.fixture(scope="module")
def browser():
    """Chromium, driven by Playwright; without either its tests skip."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=FLAGS)
        yield chromium
        chromium.close()
