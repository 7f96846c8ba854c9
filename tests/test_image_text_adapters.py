"""Low-rank adapters of image-text students: of both towers or of the one that learns, merged into stock towers at the end."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from retriever.collection import Collection
from retriever.config import experiment_from
from retriever.errors import ConfigError
from retriever.models.modalities import frozen_modules
from retriever.settings.training import LoraSettings
from retriever.students.image_text import ImageTextStudent, load_folder
from retriever.training.lora import FILE, Adapters, linear_layers
from retriever.types import Query
from tests import test_momentum
from tests.image_text_material import open_squares, save_efficientnet, save_vit, student_of
from tests.test_momentum import SETTINGS
from tests.training_material import Stopped, weights

pytest.importorskip("peft", reason='needs the extra "lora"')

LORA = {"rank": 2, "alpha": 4}
PROJECTIONS = {f"0.sub_modules.{tower}.2.linear.weight" for tower in ("image", "text")}


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("towers")
    return {"efficientnet": save_efficientnet(folder / "efficientnet"), "vit": save_vit(folder / "vit")}


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return open_squares(tmp_path_factory.mktemp("squares"))


def trained(student: ImageTextStudent, squares: Collection, folder: Path, stop_at: int | None = None, **settings: Any) -> dict[str, Tensor]:
    """The weights after training with adapters, and without a queue."""
    return test_momentum.trained(student, squares, folder, stop_at, **{"queue": None, "lora": LORA, **settings})


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, weight in after.items() if not torch.equal(weight, before[name])}


@pytest.mark.parametrize("tower", ["efficientnet", "vit"])
def test_linear_layers_of_both_towers_and_the_projections_move_and_nothing_else(
    towers: dict[str, Path], encoder_folder: Path, squares: Collection, tmp_path: Path, tower: str
) -> None:
    student = student_of(towers[tower], encoder_folder)
    before = weights(student.model)
    changed = moved(before, trained(student, squares, tmp_path / "train"))
    assert changed >= PROJECTIONS
    layers = {f"0.sub_modules.{way}.0.model.{name}.weight" for way in ("image", "text") for name in linear_layers(student.model[0].sub_modules[way][0].model)}
    assert changed <= PROJECTIONS | layers
    for way in ("image", "text"):
        assert any(name.startswith(f"0.sub_modules.{way}.0.") for name in changed)
    student.save(tmp_path / "student")
    assert not [path for path in (tmp_path / "student").rglob("*") if "adapter" in path.name]
    query = [Query("q", "a square in blue")]
    assert load_folder(tmp_path / "student").encode_queries(query) == pytest.approx(student.encode_queries(query), abs=1e-5)


def test_a_frozen_tower_gets_no_adapters_and_its_vectors_still_stand_in_for_it(
    towers: dict[str, Path], encoder_folder: Path, squares: Collection, tmp_path: Path
) -> None:
    student = student_of(towers["vit"], encoder_folder, frozen_image=True)
    before = weights(student.model)
    ran: list[int] = []
    student.model[0].sub_modules["image"][0].register_forward_pre_hook(lambda module, args: ran.append(len(args[0].get("pixel_values", ()))))
    changed = moved(before, trained(student, squares, tmp_path))
    assert not [name for name in changed if ".image.0." in name]
    assert [name for name in changed if ".text.0." in name]
    assert sum(ran) == 12  # each image once


def test_layers_of_a_name_get_adapters_in_the_tower_that_has_them(towers: dict[str, Path], encoder_folder: Path) -> None:
    model = student_of(towers["efficientnet"], encoder_folder).model
    Adapters(model, LoraSettings(modules=("query", "top_conv")), 1)
    adapted = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == {"query", "top_conv"}
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    alone = student_of(towers["efficientnet"], encoder_folder).model
    Adapters(alone, LoraSettings(modules=("query",)), 1)
    assert [len(frozen_modules(alone, way)) for way in ("image", "text")] == [2, 0]  # the tower without such layers, with its pooling, stays as it is
    with pytest.raises(ConfigError, match=r"none of q_proj is in the model; it has dense, .*top_conv"):
        Adapters(student_of(towers["efficientnet"], encoder_folder).model, LoraSettings(modules=("q_proj",)), 1)


def test_norms_keep_their_statistics_while_adapters_learn_and_learn_them_again_afterwards(towers: dict[str, Path], encoder_folder: Path) -> None:
    model = student_of(towers["efficientnet"], encoder_folder).model
    adapters = Adapters(model, LoraSettings(rank=2), 1)
    model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm.training for norm in norms)
    adapters.merge()
    model.train()
    assert all(norm.training for norm in norms)


def test_a_stop_changes_nothing_and_checkpoints_hold_adapters_and_projections_alone(
    towers: dict[str, Path], encoder_folder: Path, squares: Collection, tmp_path: Path
) -> None:
    queue = {"queue": SETTINGS["queue"]}
    whole = trained(student_of(towers["efficientnet"], encoder_folder), squares, tmp_path / "whole", **queue)
    with pytest.raises(Stopped):
        trained(student_of(towers["efficientnet"], encoder_folder), squares, tmp_path / "stopped", stop_at=5, **queue)
    checkpoint = tmp_path / "stopped" / "checkpoints" / "checkpoint-3"
    assert (checkpoint / FILE).exists()
    assert not (checkpoint / "model.safetensors").exists()
    again = trained(student_of(towers["efficientnet"], encoder_folder), squares, tmp_path / "stopped", **queue)
    assert not moved(whole, again)


def test_two_frozen_towers_leave_nothing_to_adapt(towers: dict[str, Path], encoder_folder: Path) -> None:
    student = student_of(towers["vit"], encoder_folder, frozen_image=True, frozen_text=True)
    with pytest.raises(
        ConfigError, match=r"training\.lora: no linear layer of the student's transformer learns. Let a tower learn, or leave training\.lora out"
    ):
        Adapters(student.model, LoraSettings(), 1)
    values = {"name": "tiny", "collection": {"path": "x"}, "teacher": [{"kind": "lexical"}], "training": {"lora": {}}}
    towers_alone = {"kind": "image_text", "image_model": "a", "text_model": "b"}
    assert experiment_from({**values, "student": towers_alone}).training.lora == LoraSettings()
