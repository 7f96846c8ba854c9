"""Teaching a cross-encoder on qrels: its lists, that it learns, and that it goes on after a stop."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder

from retriever.collection import Collection, open_collection
from retriever.errors import ConfigError, DataError
from retriever.models.names import find_model
from retriever.runs import Run
from retriever.settings.collection import CollectionSettings
from retriever.settings.teacher import TeachingSettings
from retriever.training import cross_encoder
from retriever.training.cross_encoder import teach_cross_encoder, training_lists
from retriever.types import Query
from tests.training_material import ANIMALS_AND_TOOLS

TEACHING = TeachingSettings(epochs=25, batch_size=24, learning_rate=3e-3, negatives_per_positive=3, max_length=48, warmup=0.1)
SEED = 3


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return open_collection(CollectionSettings(path=ANIMALS_AND_TOOLS), tmp_path_factory.mktemp("teach") / "collection")


@pytest.fixture(scope="module")
def candidates(collection: Collection) -> Run:
    """All documents for each train query."""
    return Run.from_dict("all", {query_id: dict.fromkeys(collection.doc_ids.tolist(), 0.0) for query_id in collection.queries("train")})


def teach(
    start: Path,
    collection: Collection,
    candidates: Run,
    folder: Path,
    settings: TeachingSettings = TEACHING,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    queries, qrels = collection.queries("train"), collection.qrels("train")
    lists = training_lists(candidates, queries, qrels, collection, settings, np.random.default_rng(SEED))
    teach_cross_encoder(find_model(str(start)), lists, settings, folder, SEED, progress)


def logits(model: Path, pairs: list[tuple[str, str]]) -> np.ndarray:
    loaded = CrossEncoder(str(model), device="cpu", local_files_only=True)
    return np.asarray(loaded.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False))


def share_of_lists_led_by_their_positive(model: Path, collection: Collection, candidates: Run) -> float:
    """Over the lists that it was taught."""
    lists = training_lists(candidates, collection.queries("train"), collection.qrels("train"), collection, TEACHING, np.random.default_rng(SEED))
    scores = [logits(model, [(query, document) for document in documents]) for query, documents in zip(lists["query"], lists["docs"], strict=True)]
    return float(np.mean([row.argmax() == 0 for row in scores]))


@pytest.fixture(scope="module")
def taught(encoder_folder: Path, collection: Collection, candidates: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    teach(encoder_folder, collection, candidates, folder)
    return folder


def test_a_taught_cross_encoder_ranks_its_lessons(taught: Path, collection: Collection, candidates: Run) -> None:
    assert share_of_lists_led_by_their_positive(taught / "model", collection, candidates) > 0.6  # 1 of 4 by chance


def test_a_taught_cross_encoder_is_a_stock_folder_with_one_label_and_its_length(taught: Path) -> None:
    model = CrossEncoder(str(taught / "model"), local_files_only=True)
    assert (model.num_labels, model.max_seq_length) == (1, 48)


def test_a_stopped_teaching_goes_on_and_ends_with_the_same_model(
    taught: Path, encoder_folder: Path, collection: Collection, candidates: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, int]] = []

    def stop_at_25(step: int, steps: int) -> None:
        if step == 25:
            raise KeyboardInterrupt

    monkeypatch.setattr(cross_encoder, "SAVE_STEPS", 10)
    with pytest.raises(KeyboardInterrupt):
        teach(encoder_folder, collection, candidates, tmp_path, progress=stop_at_25)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-10", "checkpoint-20"]
    teach(encoder_folder, collection, candidates, tmp_path, progress=lambda step, steps: told.append((step, steps)))
    steps = told[-1][0]
    assert told == [(step, steps) for step in range(21, steps + 1)]
    pairs = [("owl", "a bird of prey"), ("saw", "it cuts wood")]
    np.testing.assert_allclose(logits(tmp_path / "model", pairs), logits(taught / "model", pairs), atol=1e-5)


def test_a_cross_encoder_can_be_taught_further(cross_encoder_folder: Path, collection: Collection, candidates: Run, tmp_path: Path) -> None:
    teach(cross_encoder_folder, collection, candidates, tmp_path, TEACHING.model_copy(update={"epochs": 1}))
    pairs = [("owl", "a bird of prey")]
    assert logits(tmp_path / "model", pairs) != logits(cross_encoder_folder, pairs)


def test_teaching_prints_nothing_to_standard_output(
    encoder_folder: Path, collection: Collection, candidates: Run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    teach(encoder_folder, collection, candidates, tmp_path, TEACHING.model_copy(update={"epochs": 1}))
    assert capfd.readouterr().out == ""


def test_a_length_above_the_models_positions_is_cut_to_them(encoder_folder: Path, collection: Collection, candidates: Run, tmp_path: Path) -> None:
    teach(encoder_folder, collection, candidates, tmp_path, TEACHING.model_copy(update={"epochs": 1, "max_length": 256}))
    assert CrossEncoder(str(tmp_path / "model"), local_files_only=True).max_seq_length == 128


def test_a_classifier_of_several_labels_is_refused(three_labels_folder: Path, collection: Collection, candidates: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teach: .*three-labels has another number of labels than 1\. Start from an encoder"):
        teach(three_labels_folder, collection, candidates, tmp_path)


# Lists


def lists(collection: Collection, run: Run, qrels: dict[str, dict[str, int]], negatives: int = 2, seed: int = 1) -> list[tuple[str, list[str], list[float]]]:
    queries = {query_id: Query(query_id, f"query {query_id}") for query_id in ("q1", "q2")}
    settings = TeachingSettings(negatives_per_positive=negatives)
    made = training_lists(run, queries, qrels, collection, settings, np.random.default_rng(seed))
    return list(zip(made["query"], made["docs"], made["labels"], strict=True))


@pytest.fixture(scope="module")
def texts(collection: Collection) -> dict[str, str]:
    return {document.doc_id: document.full_text for document in collection.documents()}


def test_each_positive_heads_a_list_with_negatives_of_its_query(collection: Collection, texts: dict[str, str]) -> None:
    run = Run.from_dict("run", {"q1": {"owl": 3, "fox": 2, "bat": 1, "mole": 0}, "q2": {"owl": 1, "bear": 0}})
    found = lists(collection, run, {"q1": {"owl": 2, "mole": 1, "bat": 0}, "q2": {"bear": 1}})
    assert [(query, documents[0], labels) for query, documents, labels in found] == [
        ("query q1", texts["owl"], [1, 0, 0]),
        ("query q1", texts["mole"], [1, 0, 0]),
        ("query q2", texts["bear"], [1, 0]),  # there is but one other candidate
    ]
    assert [set(documents[1:]) for _, documents, _ in found] == [{texts["fox"], texts["bat"]}, {texts["fox"], texts["bat"]}, {texts["owl"]}]


def test_a_positive_need_not_be_a_candidate(collection: Collection, texts: dict[str, str]) -> None:
    found = lists(collection, Run.from_dict("run", {"q1": {"fox": 1}}), {"q1": {"owl": 1}})
    assert found == [("query q1", [texts["owl"], texts["fox"]], [1, 0])]


def test_draws_come_from_the_generator(collection: Collection) -> None:
    run = Run.from_dict("run", {"q1": dict.fromkeys(collection.doc_ids.tolist(), 0.0)})
    first, again, other = (lists(collection, run, {"q1": {"owl": 1}}, negatives=5, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len(set(first[0][1])) == 6


@pytest.mark.parametrize("qrels", [{}, {"q1": {"fox": 0}}, {"q1": {"owl": 1, "fox": 1}}, {"q2": {"owl": 1}}])
def test_train_queries_without_a_positive_and_a_negative_are_refused(collection: Collection, qrels: dict[str, dict[str, int]]) -> None:
    run = Run.from_dict("run", {"q1": {"owl": 2, "fox": 1}, "q2": {}})
    with pytest.raises(DataError, match="teach: no train query has both a positive and a candidate that is not judged relevant"):
        lists(collection, run, qrels)
