"""Peaks by the names that jax gives to devices; what is not known is not guessed."""

from types import SimpleNamespace

import jax
import pytest

from vital_jax.training.chips import peak, peak_of


@pytest.mark.parametrize(
    "kind, teraflops",
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5e", 197),
        ("TPU v5", 459),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU v6e", 918),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_a_known_chip(kind, teraflops):
    assert peak(kind) == teraflops * 1e12


@pytest.mark.parametrize(
    "kind", ["cpu", "TPU v99", "NVIDIA A1000", "NVIDIA H1000", "NVIDIA L400", "NVIDIA GeForce RTX 4090 Laptop GPU"]
)
def test_an_unknown_chip_has_no_peak(kind):
    assert peak(kind) is None


def test_devices_add_up_and_one_unknown_spoils_the_sum():
    known, other = SimpleNamespace(device_kind="TPU v4"), SimpleNamespace(device_kind="abacus")
    assert peak_of([known, known]) == 550e12
    assert peak_of([known, other]) is None
    assert peak_of(jax.devices()) is None
