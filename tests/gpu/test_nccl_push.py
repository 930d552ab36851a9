"""The weight push over NCCL between two GPUs: the same sender and receiver as over gloo, one line apart."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sluice.weights.backends import Rendezvous
from sluice.weights.receiver import WeightReceiver
from tests.integration.weight_cases import random_snapshot

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]

SENDER = """
import json, sys
import torch
from sluice.weights.sender import WeightSender
from tests.integration.weight_cases import random_snapshot

torch.cuda.set_device(0)
sender = WeightSender(backend="nccl", host="127.0.0.1")
sender.publish(random_snapshot(1))
opened = sender.open(rollout_id="r", epoch="e", timeout_s=60.0)
print(json.dumps({"port": opened.store_port, "secret": opened.secret}), flush=True)
sys.stdin.read()
sender.close()
"""


def test_a_version_arrives_whole_on_another_gpu() -> None:
    assert torch.cuda.device_count() >= 2, "two GPUs are needed: NCCL refuses two ranks on one"
    torch.cuda.set_device(1)
    process = subprocess.Popen(
        [sys.executable, "-c", SENDER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    receiver = WeightReceiver()
    try:
        assert process.stdout is not None
        opened = json.loads(process.stdout.readline())
        rendezvous = Rendezvous(
            host="127.0.0.1",
            port=opened["port"],
            secret=opened["secret"],
            epoch="e",
            rank=1,
            world_size=2,
            timeout_s=60.0,
        )
        expected = random_snapshot(1)
        receiver.join(rendezvous, backend="nccl")
        receiver.begin(epoch="e", manifest=expected.manifest)
        np.testing.assert_array_equal(receiver.result(timeout_s=60.0).buffer, expected.buffer)
    finally:
        receiver.close()
        process.communicate(timeout=30)
