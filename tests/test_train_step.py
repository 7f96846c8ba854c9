"""What a train step leaves and what its validation says, of sparse students too."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever.config import read_experiment
from retriever.pipeline import Pipeline
from retriever.steps.train import excess, read_curve
from tests.tiny_experiment import write_experiment


def sparse_pipeline(tmp_path: Path, beir: Path, encoder: Path, work: str = "work") -> Pipeline:
    changes = {"[student]": '[student]\nkind = "sparse"\nquery_dimensions = 8\ndocument_dimensions = 20', 'model = "student"': f'model = "{encoder}"'}
    changes['"bm25", "student"'] = '"bm25"'
    settings = ["training.epochs=6", "training.checkpoint_steps=3", "training.evaluations_per_epoch=1"]
    return Pipeline(read_experiment(write_experiment(tmp_path, beir, encoder, changes), settings), tmp_path / work)


def test_a_tenth_is_no_excess_and_the_worse_side_counts() -> None:
    assert excess((32, 150), (32, 150)) == 0
    assert excess((35, 136.5), (32, 150)) == 0
    assert excess((64, 150), (32, 150)) == pytest.approx(math.log(2) - math.log(1.1))
    assert excess((16, 600), (32, 150)) == pytest.approx(math.log(4) - math.log(1.1))
    assert excess((7, 300), (None, 150)) == pytest.approx(math.log(2) - math.log(1.1))  # queries that are looked up have no goal


@given(active=st.floats(0, 1e4), wanted=st.floats(1, 1e3))
def test_excess_is_never_below_zero_and_finite(active: float, wanted: float) -> None:
    assert 0 <= excess((active,), (wanted,)) < 100


def test_the_curve_of_a_sparse_student_shows_its_active_dimensions(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    pipeline = sparse_pipeline(tmp_path, shared_beir_folder, encoder_folder)
    points = [point for point in read_curve(pipeline.trained.folder) if "validation" in point]
    assert all({"active_queries", "active_documents", "excess"} <= point.keys() for point in points)
    assert len(points) == 7
    held = [pipeline.queries("train")[query_id] for query_id in pipeline.held_out[1]]
    best = min(points, key=lambda point: (point["excess"], -point["validation"]))
    assert pipeline.student.encode_queries(held).counts.mean() == pytest.approx(best["active_queries"], rel=0.01)


def test_a_stopped_sparse_training_goes_on_with_the_weights_it_had(tmp_path: Path, shared_beir_folder: Path, encoder_folder: Path) -> None:
    whole = sparse_pipeline(tmp_path, shared_beir_folder, encoder_folder, "whole")
    expected = read_curve(whole.trained.folder)
    stopped = sparse_pipeline(tmp_path, shared_beir_folder, encoder_folder, "stopped")
    update, steps = stopped.reporter.update, []

    def stop(message: str) -> None:
        update(message)
        steps.append(message)
        if len(steps) == 8:
            raise KeyboardInterrupt

    stopped.reporter.update = stop  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        _ = stopped.trained
    again = sparse_pipeline(tmp_path, shared_beir_folder, encoder_folder, "stopped")
    assert read_curve(again.trained.folder) == expected
