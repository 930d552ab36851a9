"""Which devices a run finds and may use: NVML, CUDA_VISIBLE_DEVICES, `launch.gpus`."""

import pynvml
import pytest

from sluice.errors import ConfigError
from sluice.gpus.chosen import allowed
from sluice.gpus.machine import Link, Machine
from sluice.gpus.nvml import find_machine
from tests.unit.gpus.fake_nvml import FakeGpu, FakeNvml, machine_of, within

SLICED = FakeGpu(uuid="GPU-5a", slices=["MIG-aa", None, "MIG-bb"])


def ids(machine: Machine) -> list[str]:
    return [device.id for device in machine.devices]


def choose(machine: Machine, *, visible: str | None = None, gpus: object = "auto") -> list[str]:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return ids(allowed(machine, gpus=gpus, environ=environ))  # type: ignore[arg-type]


def refusal(machine: Machine, *, visible: str | None = None, gpus: object = "auto") -> str:
    with pytest.raises(ConfigError) as caught:
        choose(machine, visible=visible, gpus=gpus)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_driver_or_with_a_torch_for_cpus_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    nvml = machine_of(2).install(monkeypatch)
    assert ids(find_machine()) == ["0", "1"]
    assert nvml.opened == 0
    monkeypatch.setattr(pynvml, "nvmlInit", no_library)
    assert find_machine() == Machine()
    nvml.install(monkeypatch)
    monkeypatch.setattr("sluice.gpus.nvml.torch_has_cuda", lambda: False)
    assert find_machine() == Machine()
    said = refusal(Machine(), gpus=[0])
    assert said.startswith("launch.gpus: must name GPUs of this machine, got 0, and none is found: the NVIDIA driver")
    assert choose(Machine(), visible="3") == choose(Machine(), gpus="none") == []
    machine_of(0).install(monkeypatch)
    assert find_machine() == Machine()


def test_links_are_those_that_nvml_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    common = {(0, 2): pynvml.NVML_TOPOLOGY_MULTIPLE, (1, 2): pynvml.NVML_TOPOLOGY_NODE}
    gpus = [FakeGpu(uuid=f"GPU-{n}", slices=()) for n in range(4)]
    gpus[3].broken = True
    FakeNvml(gpus=gpus, nvlink=within((0, 1)), common=common).install(monkeypatch)
    machine = find_machine()
    a, b, c = machine.devices
    assert [machine.link_between(a, b), machine.link_between(c, a), machine.link_between(b, c)] == [
        Link.NVLINK,
        Link.SWITCH,
        Link.CPU,
    ]
    assert (a.name, a.memory_bytes, a.sliced) == ("Fake H100", 80 * 10**9, False)
    machine_of(2).install(monkeypatch)
    machine = find_machine()
    assert machine.link_between(*machine.devices) is Link.FAR


def test_a_gpu_with_mig_is_its_slices_and_each_name_of_a_slice_works(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(gpus=[FakeGpu(uuid="GPU-3b"), SLICED]).install(monkeypatch)
    machine = find_machine()
    assert ids(machine) == ["0", "MIG-aa", "MIG-bb"]
    assert (machine.devices[2].name, machine.devices[2].memory_bytes) == ("Fake H100 MIG 3g.40gb", 40 * 10**9)
    assert choose(machine, visible="MIG-bb") == choose(machine, visible="MIG-GPU-5a/3/0") == ["MIG-bb"]
    assert choose(machine, visible="1") == choose(machine, gpus=["GPU-5"]) == ["MIG-aa", "MIG-bb"]
    assert choose(machine, gpus=["MIG-b", 0]) == ["MIG-bb", "0"]


def test_the_environment_and_the_recipe_say_which_and_in_which_order(monkeypatch: pytest.MonkeyPatch) -> None:
    machine_of(8).install(monkeypatch)
    machine = find_machine()
    assert choose(machine, visible="3, 1") == ["3", "1"]
    assert choose(machine, visible="GPU-4a,GPU-2a-uuid") == ["4", "2"]
    assert choose(machine, visible="") == choose(machine, visible="NoDevFiles") == choose(machine, gpus="none") == []
    assert choose(machine, visible="0,-1,2") == ["0"]
    assert choose(machine, visible="0,1,2", gpus=[2, "GPU-0a"]) == ["2", "0"]
    assert allowed(machine, gpus="none", environ={}).has_gpus


@pytest.mark.parametrize(
    ("visible", "gpus", "said"),
    [
        ("9", "auto", "CUDA_VISIBLE_DEVICES=9: must name GPUs of this machine, which are 0, 1; got 9; correct it"),
        ("9" * 5000, "auto", "got 999"),
        ("0,GPU-0a", "auto", "CUDA_VISIBLE_DEVICES=0,GPU-0a: must name a GPU once, got 0 twice; correct it"),
        ("GPU-", "auto", "must name one GPU at a time, got GPU-, which begins GPU-0a-uuid, GPU-1a-uuid"),
        (None, [7], "launch.gpus: must name GPUs of this machine, which are 0, 1; got 7; `nvidia-smi -L` lists them"),
        ("0", [1], "launch.gpus: must name GPUs that CUDA_VISIBLE_DEVICES=0 leaves, got 1; numbers are those of"),
        (None, ["GPU-7"], "which are 0, 1; got GPU-7"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(
    visible: str | None, gpus: object, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_of(2).install(monkeypatch)
    assert said in refusal(find_machine(), visible=visible, gpus=gpus)
