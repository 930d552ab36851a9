"""A learner's end that hangs or dies in the middle of a transfer: prints its rendezvous, sends some buckets, then signals
itself. Run as `python -m tests.integration.weight_sender_process EPOCH BUCKETS SIGNAL`."""

import json
import os
import signal
import sys
import threading
from unittest import mock

import numpy as np

from sluice.weights import backends
from sluice.weights.sender import WeightSender
from tests.integration.weight_cases import random_snapshot


def main(epoch: str, buckets: int, signum: int) -> None:
    sent, send = 0, backends._GlooGroup.broadcast

    def broadcast(group: backends._GlooGroup, data: np.ndarray) -> None:
        nonlocal sent
        if sent == buckets:
            os.kill(os.getpid(), signum)
        sent += 1
        send(group, data)

    with mock.patch.object(backends._GlooGroup, "broadcast", broadcast):
        sender = WeightSender(backend="gloo", host="127.0.0.1")
        sender.publish(random_snapshot(1))
        opened = sender.open(rollout_id="r", epoch=epoch, timeout_s=20.0)
        print(json.dumps({"port": opened.store_port, "secret": opened.secret}), flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), signal.Signals[sys.argv[3]])
