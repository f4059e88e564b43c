"""Names on the hub: downloaded through huggingface_hub, which is replaced here."""

import huggingface_hub
import pytest
from checkpoint_builders import single
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from gqakit.checkpoint import Checkpoint
from gqakit.errors import CheckpointError


@pytest.mark.parametrize("name", ["org/tiny-model", "gpt2", "org/tiny-model@v2", "org/tiny-model@refs/pr/3"])
def test_hub_name(tmp_path, monkeypatch, name):
    asked = {}

    def snapshot(repo_id, **patterns):
        asked.update(patterns, repo_id=repo_id)
        return str(single(tmp_path / "snapshot"))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert Checkpoint.open(name).path == tmp_path / "snapshot"
    repository, _, revision = name.partition("@")
    assert (asked["repo_id"], asked["revision"]) == (repository, revision or None)
    assert not any("bin" in pattern for pattern in asked["allow_patterns"])


def test_a_directory_wins_over_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    single(tmp_path / "org" / "model")
    assert str(Checkpoint.open("org/model").path) == "org/model"


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no network\nand more"),
        HFValidationError("bad name"),
        ConnectionError("offline"),
        HfHubHTTPError.__bases__[0]("timed out"),
    ],
)
def test_hub_failure(monkeypatch, tmp_path, error):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match="org/none: neither a directory here nor reachable"):
        Checkpoint.open("org/none")
