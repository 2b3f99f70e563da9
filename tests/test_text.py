"The text encoder: no network, and no other weights than the published ones."
import socket

import pytest
import torch

from peace_nb.models import text as T
from peace_nb.settings import PeaceError


def test_the_default_encoder_never_opens_a_connection(tmp_path, monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError("the text encoder tried to use the network")
    monkeypatch.setattr(socket.socket, "connect", refuse); monkeypatch.setattr(socket, "getaddrinfo", refuse)
    v = T.embed_texts([["Sinus rhythm."]], cache=tmp_path)
    assert v.shape == (1, 1, 384) and torch.isfinite(v).all()
    with pytest.raises(PeaceError, match="not on this machine"): T.embed_texts(["x"], model="ncbi/MedCPT-Query-Encoder-that-nobody-has", cache=tmp_path)


def test_exchanged_weights_are_refused(tmp_path, monkeypatch):
    import shutil
    folder = tmp_path / "model"; shutil.copytree(T.minilm_folder(), folder)
    with open(folder / "model.safetensors", "r+b") as f: f.seek(-1, 2); f.write(b"\x01")
    monkeypatch.setattr(T, "minilm_folder", lambda: folder)
    with pytest.raises(PeaceError, match="damaged"): T.embed_texts(["x"], cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    T.embed_texts(["x"], model=folder, cache=tmp_path / "cache")     # as a folder of one's own it is another model
    with pytest.raises(PeaceError, match="does not exist"): T.embed_texts(["x"], model=str(tmp_path / "no" / "folder"), cache=tmp_path)


def test_a_folder_with_truncated_weights_ends_in_one_sentence(tmp_path):
    import shutil
    folder = tmp_path / "model"; shutil.copytree(T.minilm_folder(), folder)
    data = (folder / "model.safetensors").read_bytes(); (folder / "model.safetensors").write_bytes(data[:1000])
    with pytest.raises(PeaceError) as e: T.embed_texts(["x"], model=folder, cache=tmp_path / "cache")
    assert "could not be loaded" in str(e.value) and "\n" not in str(e.value)


def test_an_encoder_that_would_be_half_random_is_refused(tmp_path):
    import shutil
    from safetensors.torch import load_file, save_file
    folder = tmp_path / "model"; shutil.copytree(T.minilm_folder(), folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "layer.3" not in k}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PeaceError, match="weights are missing"): T.embed_texts(["x"], model=folder, cache=tmp_path / "cache")
