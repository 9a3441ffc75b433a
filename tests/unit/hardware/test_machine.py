"""The machine as a whole."""

import time

import msgspec

from runner.api.backend import Machine
from runner.hardware import read_machine


def test_this_machine_is_read_and_can_be_sent_on() -> None:
    machine = read_machine()
    assert machine.cpu.n_usable >= 1
    assert machine.memory.total_bytes > 0
    assert msgspec.json.decode(msgspec.json.encode(machine), type=Machine) == machine


def test_reading_is_cheap() -> None:
    if read_machine().gpus:
        return  # the GPU driver takes its own time
    start = time.process_time()
    read_machine()
    assert time.process_time() - start < 0.1
