from collections.abc import Iterator

import numpy as np
import pytest
import torch

from adapters.errors import AdapterFileInvalid, AdapterIncompatible, ProbeMismatch
from adapters.file import write_adapter
from backbone.executors.cuda_executor import CudaExecutor
from backbone.executors.device_memory import CudaLimits
from backbone.executors.torch_executor import TorchExecutor
from server.device import BackboneDevice
from tests.fake_gpu import FakeGpu
from tests.models import SIZE, make_adapter, make_backbone


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=["float32", "bfloat16"])
def device(request: pytest.FixtureRequest) -> BackboneDevice:
    executor = TorchExecutor(make_backbone("vit_layer_scale"), device="cpu", dtype=request.param, slots=2)
    return BackboneDevice(executor, slots=2)


def test_good_adapter_is_valid_and_answers(device: BackboneDevice) -> None:
    adapter = make_adapter(make_backbone("vit_layer_scale"), seed=4)
    data = write_adapter(adapter)
    assert device.validate(data) == adapter.manifest
    device.load(2, device.fold(data))
    logits = device.run([np.zeros((3, SIZE, SIZE), np.uint8)], [2])[0]
    assert logits.shape == (5,) and logits.dtype == np.float32


def test_adapter_with_another_probe_is_refused(device: BackboneDevice) -> None:
    backbone = make_backbone("vit_layer_scale")
    other = make_adapter(backbone, seed=1).manifest.probe
    with pytest.raises(ProbeMismatch):
        device.validate(write_adapter(make_adapter(backbone, seed=4, probe=other)))


def test_adapter_that_lost_a_site_is_refused_in_every_dtype(device: BackboneDevice) -> None:
    backbone = make_backbone("vit_layer_scale")
    probe = make_adapter(backbone, seed=4, std=0.02).manifest.probe
    less = make_adapter(backbone, seed=4, std=0.02, without=["blocks.0.norm1"], probe=probe)
    with pytest.raises(ProbeMismatch):
        device.validate(write_adapter(less))


def test_a_probe_cannot_widen_its_own_tolerance(device: BackboneDevice) -> None:
    backbone = make_backbone("vit_layer_scale")
    other = make_adapter(backbone, seed=1).manifest.probe.model_copy(update={"spread": 1e30})
    with pytest.raises(ProbeMismatch):
        device.validate(write_adapter(make_adapter(backbone, seed=4, probe=other)))


def test_adapter_of_another_backbone_is_refused(device: BackboneDevice) -> None:
    data = write_adapter(make_adapter(make_backbone("vit_layer_scale", seed=9), seed=4))
    with pytest.raises(AdapterIncompatible, match="fingerprint"):
        device.validate(data)
    with pytest.raises(AdapterIncompatible, match="fingerprint"):
        device.fold(data)


def test_adapter_with_more_classes_than_a_slot_has_room_for_is_refused() -> None:
    backbone = make_backbone("vit_layer_scale")
    executor = CudaExecutor(backbone, FakeGpu(), dtype="float32", slots=1, limits=CudaLimits(1, 16))
    device = BackboneDevice(executor, slots=1)
    data = write_adapter(make_adapter(backbone, classes=17))
    for refuse in (device.validate, device.fold):
        with pytest.raises(AdapterIncompatible, match="classes is 17, expected at most 16"):
            refuse(data)
    assert (device.info.lanes, device.info.memory) == (2, executor.memory)


def test_a_cpu_has_no_memory_of_its_own(device: BackboneDevice) -> None:
    assert (device.memory(), device.info.memory, device.info.lanes) == ({}, {}, 1)


def test_bytes_that_are_no_adapter_are_refused(device: BackboneDevice) -> None:
    with pytest.raises(AdapterFileInvalid):
        device.fold(b"not an adapter")


def test_info_describes_the_backbone(device: BackboneDevice) -> None:
    info = device.info
    backbone = make_backbone("vit_layer_scale")
    assert info.fingerprint == backbone.fingerprint
    assert dict(info.sites) == dict(backbone.sites.widths)
    assert (info.executor, info.slots, info.preprocessing.height) == ("torch", 2, SIZE)
