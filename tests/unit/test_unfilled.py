"""Weights that are loaded anyway are not drawn first, and nothing else of the model changes."""

import pytest
import timm
import torch

from backbone.unfilled import Unfilled

NAMES = ("vit_tiny_patch16_224", "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224", "convnext_atto")


@pytest.mark.parametrize("name", NAMES)
def test_loading_gives_what_a_drawn_model_gives(name: str) -> None:
    drawn = timm.create_model(name, num_classes=0)
    with Unfilled():
        model = timm.create_model(name, num_classes=0)
    parameters = {
        key: value for key, value in drawn.state_dict().items() if key in dict(drawn.named_parameters())
    }
    model.load_state_dict(parameters, strict=False)
    ours, theirs = dict(model.named_buffers()), dict(drawn.named_buffers())
    assert ours.keys() == theirs.keys()
    for key, buffer in theirs.items():
        torch.testing.assert_close(ours[key], buffer, rtol=0, atol=0)
    image = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(image), drawn.eval()(image), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_drawn(name: str) -> None:
    before = torch.get_rng_state()
    with Unfilled():
        timm.create_model(name, num_classes=0)
    assert torch.equal(before, torch.get_rng_state())


def test_buffers_are_set() -> None:
    class Shifted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))
            torch.nn.init.normal_(self.weight)
            self.register_buffer("table", torch.arange(3.0).mul_(2).add_(1))

    with Unfilled():
        made = Shifted()
    assert made.table.tolist() == [1.0, 3.0, 5.0]
    assert made.weight.tolist() == [1.0, 1.0, 1.0]
