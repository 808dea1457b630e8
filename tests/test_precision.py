"""Which number format and device a name stands for."""

from __future__ import annotations

import pytest
import torch

from equitomo.precision import autocast, checked_dtype, chosen_device, dtype_of, known_fault

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_name_stands_for_its_type_on_any_device(name, device):
    assert dtype_of(name, device) == getattr(torch, name)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({}, torch.float32),
        ({"avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ],
)
def test_a_processor_computes_in_sixteen_bits_only_where_it_has_the_instructions(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert dtype_of("auto", CPU) == expected


@pytest.mark.parametrize(("able", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_computes_in_bfloat16_where_that_is_not_emulated(monkeypatch, able, expected):
    # The default of the argument would count emulation as support.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: able or including_emulation)
    assert dtype_of("auto", CUDA) == expected


def test_an_unknown_kind_of_device_computes_in_float32():
    assert dtype_of("auto", torch.device("meta")) == torch.float32


def test_an_unknown_precision_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="must be one of auto, float32, bfloat16, float16, got 'half'"):
        dtype_of("half", CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_type_and_float32_means_none(dtype):
    a = torch.ones(2, 2)
    with autocast(dtype, CPU):
        assert (a @ a).dtype == dtype
        assert torch.is_autocast_enabled("cpu") == (dtype != torch.float32)


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda"), (False, "cpu")])
def test_the_device_chosen_is_the_gpu_if_there_is_one(monkeypatch, available, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert chosen_device("auto") == torch.device(expected)


def test_a_device_may_be_named():
    assert chosen_device("cpu") == CPU


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_with_the_remedy(name):
    with pytest.raises(ValueError, match=rf"device '{name}' cannot be used here \(.*\): use 'auto' or 'cpu'"):
        chosen_device(name)


def broken_convolution(x, weight, **options):
    # Wrong only in sixteen bits, as the faulty releases are.
    y = convolution(x, weight, **options)
    return y * 1.2 if y.dtype == torch.bfloat16 else y


convolution = torch.nn.functional.conv3d


@pytest.mark.fault(66)
def test_sixteen_bits_are_trusted_where_they_agree_with_float32():
    assert checked_dtype("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_sixteen_bits_are_tried_whatever_the_gradient_mode(context):
    with context():
        assert checked_dtype("bfloat16", CPU) == torch.bfloat16


@pytest.mark.fault(66)
def test_a_wrong_convolution_makes_auto_fall_back_to_float32_with_a_warning(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "conv3d", broken_convolution)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    with pytest.warns(UserWarning, match=r"error of 20% in the values; computing in float32"):
        assert checked_dtype("auto", CPU) == torch.float32


@pytest.mark.fault(66)
def test_a_wrong_convolution_refuses_a_format_that_was_asked_for(monkeypatch):
    monkeypatch.setattr(torch.nn.functional, "conv3d", broken_convolution)
    with pytest.raises(
        ValueError, match=r"torch .* computes 3-D convolutions in torch.bfloat16 .*pass `precision='float32'`"
    ):
        checked_dtype("bfloat16", CPU)


@pytest.mark.fault(66)
def test_a_wrong_gradient_is_noticed_too(monkeypatch):
    def detached(x, weight, **options):
        y = convolution(x, weight, **options)
        return y + 0.5 * (y - y.detach()) if y.dtype == torch.bfloat16 else y

    monkeypatch.setattr(torch.nn.functional, "conv3d", detached)
    with pytest.raises(ValueError, match="in the input gradient"):
        checked_dtype("bfloat16", CPU)


@pytest.mark.fault(66)
@pytest.mark.parametrize(
    ("torch_version", "cudnn", "fault"),
    [
        ("2.9.0", 91002, "163539"),
        ("2.8.0", 90800, "163539"),
        ("2.9.1", 91400, "166643"),
        ("2.9.1", 91500, None),
        ("2.10.0", 91501, None),
        ("2.15.0", 91900, None),
        ("2.9.0", None, None),
    ],
)
def test_versions_known_to_be_faulty_are_named(torch_version, cudnn, fault):
    found = known_fault(torch_version, cudnn)
    assert found is None if fault is None else fault in found
