import argparse
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mobilevit_coreml.checkpoints import files
from mobilevit_coreml.checkpoints.files import read_json_object, read_weights, sha256_of
from mobilevit_coreml.errors import CheckpointError

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}


class Trap:
    """Its pickle would leave a file behind, if anything ran it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    "saved",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {}, "lr": 0.1}},
        {"model": STATE, "epoch": 3},
        {"epoch": torch.tensor(3), "model": {"state_dict": STATE}},
        {"model_state_dict": STATE},
        {"arch": "mobilevit_xs", "state_dict": STATE, "args": argparse.Namespace(lr=0.1)},
    ],
    ids=["bare", "state_dict", "model", "twice", "model_state_dict", "timm's training script"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_reads_torch_checkpoints_and_their_wrappers(tmp_path: Path, saved: object, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    tensors = read_weights(path).tensors
    assert tensors.keys() == STATE.keys()
    assert all(torch.equal(tensors[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("name", ["model.safetensors", "weights.bin"])
def test_reads_safetensors_whatever_they_are_called(tmp_path: Path, name: str) -> None:
    save_file(STATE, tmp_path / name)
    assert torch.equal(read_weights(tmp_path / name).tensors["a.weight"], STATE["a.weight"])


def message(path: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        read_weights(path)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: expected ")
    return text.removeprefix(f"{path}: ")


def test_missing(tmp_path: Path) -> None:
    assert message(tmp_path / "x.pth") == (
        "expected a readable weights file, got No such file or directory; check the path"
    )


def test_empty(tmp_path: Path) -> None:
    (tmp_path / "x.pth").touch()
    assert message(tmp_path / "x.pth") == "expected weights, got an empty file; download it again"


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_git_lfs_pointer(tmp_path: Path, name: str) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:6e8c\nsize 22\n"
    (tmp_path / name).write_text(pointer)
    assert message(tmp_path / name) == (
        "expected weights, got a git-LFS pointer to them; fetch the file itself with `git lfs pull`"
    )


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("keep", [0.05, 0.5, 0.95])
def test_truncated_torch_checkpoint(tmp_path: Path, keep: float, zipped: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save({"w": torch.randn(100)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert message(path).startswith("expected a torch checkpoint, got a truncated or damaged file (")


@pytest.mark.parametrize("keep", [0.01, 0.5, 0.95])
def test_truncated_safetensors(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.randn(100)}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    assert message(path).startswith("expected a safetensors file, got a truncated or damaged file (")


def test_safetensors_header_that_claims_terabytes(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "truncated or damaged" in message(tmp_path / "x.safetensors")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_code_gets_none(tmp_path: Path, zipped: bool) -> None:
    path, trap = tmp_path / "x.pth", tmp_path / "sprung"
    torch.save({"state_dict": STATE, "extra": Trap(trap)}, path, _use_new_zipfile_serialization=zipped)
    text = message(path)
    assert text.startswith("expected tensors only, got a pickle that would run code to load (getattr)")
    assert text.endswith("save model.state_dict() and convert that")
    assert not trap.exists()


def test_a_plain_pickle_that_wants_code_gets_none(tmp_path: Path) -> None:
    path, trap = tmp_path / "x.bin", tmp_path / "sprung"
    path.write_bytes(pickle.dumps(Trap(trap), protocol=2))
    assert "a pickle that would run code to load (" in message(path)
    assert not trap.exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pt")
    assert "a pickle that would run code to load (torch.nn.modules.linear.Linear)" in message(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("saved", "got"),
    [([1, 2], "a list"), ({}, "an empty dictionary"), ({"epoch": 3}, "the keys epoch"), (STATE["a.bias"], "a Tensor")],
)
def test_no_state_dict_inside(tmp_path: Path, saved: object, got: str) -> None:
    torch.save(saved, tmp_path / "x.pt")
    text = message(tmp_path / "x.pt")
    assert text.startswith("expected a state dict, alone or under one of state_dict, model_state_dict, ")
    assert text.endswith(f"got {got}; save model.state_dict()")


def test_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_CHECKPOINT_BYTES", 1000)
    torch.save({"w": torch.zeros(1000)}, tmp_path / "x.pt")
    assert message(tmp_path / "x.pt").startswith("expected at most 1000 bytes, got ")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_CHECKPOINT_BYTES", 100_000)
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(10**7))
    assert message(tmp_path / "x.pt").startswith("expected at most 100000 bytes unpacked, got 10000000;")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_json_must_be_an_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config.json: expected (a )?JSON( object)?, got .*; check the file$"):
        read_json_object(tmp_path / "config.json")


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256_of(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
