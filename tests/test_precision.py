"""Which number format and device a name stands for."""

from __future__ import annotations

import pytest
import torch

from equitomo.precision import autocast, chosen_device, resolved

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("device", [CPU, CUDA])
@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_name_stands_for_its_type_on_any_device(name, device):
    assert resolved(name, device) == getattr(torch, name)


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
    assert resolved("auto", CPU) == expected


@pytest.mark.parametrize(("able", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_computes_in_bfloat16_where_that_is_not_emulated(monkeypatch, able, expected):
    # The default of the argument would count emulation as support.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: able or including_emulation)
    assert resolved("auto", CUDA) == expected


def test_an_unknown_kind_of_device_computes_in_float32():
    assert resolved("auto", torch.device("meta")) == torch.float32


def test_an_unknown_precision_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="one of auto, float32, bfloat16, float16, got 'half'"):
        resolved("half", CPU)


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
