"The text encoder: no network, and no other weights than the published ones."
import os, shutil, socket, subprocess, sys

import pytest
import torch

from peace_nb.knowledge import embedding as T
from peace_nb.settings import PeaceError


def test_the_default_encoder_never_opens_a_connection(tmp_path, monkeypatch):
    def refuse(*args, **kwargs): raise AssertionError("the text encoder tried to use the network")
    monkeypatch.setattr(socket.socket, "connect", refuse); monkeypatch.setattr(socket, "getaddrinfo", refuse)
    v = T.embed_texts([["Sinus rhythm."]], cache=tmp_path)
    assert v.shape == (1, 1, 384) and torch.isfinite(v).all()
    with pytest.raises(PeaceError, match="not on this machine"): T.embed_texts(["x"], model="ncbi/MedCPT-Query-Encoder-that-nobody-has", cache=tmp_path)


def test_exchanged_weights_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "model"; shutil.copytree(T.minilm_folder(), folder)
    with open(folder / "model.safetensors", "r+b") as f: f.seek(-1, 2); f.write(b"\x01")
    monkeypatch.setattr(T, "minilm_folder", lambda: folder)
    with pytest.raises(PeaceError, match="damaged"): T.embed_texts(["x"], cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    T.embed_texts(["x"], model=folder, cache=tmp_path / "cache")     # as a folder of one's own it is another model
    with pytest.raises(PeaceError, match="does not exist"): T.embed_texts(["x"], model=str(tmp_path / "no" / "folder"), cache=tmp_path)


def test_a_folder_with_truncated_weights_ends_in_one_sentence(tmp_path):
    folder = tmp_path / "model"; shutil.copytree(T.minilm_folder(), folder)
    data = (folder / "model.safetensors").read_bytes(); (folder / "model.safetensors").write_bytes(data[:1000])
    with pytest.raises(PeaceError) as e: T.embed_texts(["x"], model=folder, cache=tmp_path / "cache")
    assert "could not be loaded" in str(e.value) and "\n" not in str(e.value)


def test_an_encoder_that_would_be_half_random_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file
    folder = tmp_path / "model"; shutil.copytree(T.minilm_folder(), folder)
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if "layer.3" not in k}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PeaceError, match="weights are missing"): T.embed_texts(["x"], model=folder, cache=tmp_path / "cache")


def test_weights_in_a_pickle_are_refused(tmp_path):
    folder = tmp_path / "model"; shutil.copytree(T.minilm_folder(), folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(PeaceError, match="safetensors"): T.embed_texts(["x"], model=folder, cache=tmp_path / "cache")


def test_another_tokenizer_is_another_model(tmp_path):
    folder = tmp_path / "model"; shutil.copytree(T.minilm_folder(), folder)
    before = T.model_identity(folder)
    config = folder / "tokenizer_config.json"; config.write_text(config.read_text(encoding="utf-8").replace("true", "false", 1), encoding="utf-8")
    assert T.model_identity(folder) != before


HUB = """
import sys
from peace_nb.knowledge import embedding as T
from peace_nb.settings import PeaceError
print(T.model_identity("some/encoder"), T.model_identity("some/encoder@v1"), T.encode(["a text"], "some/encoder@v1").shape)
for name in ("some/encoder@v2", "some/pickled"):
    try: T.encode(["a text"], name); print("READ")
    except PeaceError as e: print(e)
"""

def test_a_hub_name_with_a_revision(tmp_path):
    "A cache as Hugging Face lays it out, made by hand; nothing touches the network."
    for name, commit, refs in (("encoder", "a" * 40, ("main", "v1")), ("pickled", "b" * 40, ("main",))):
        home = tmp_path / "hub" / f"models--some--{name}"; (home / "refs").mkdir(parents=True)
        shutil.copytree(T.minilm_folder(), home / "snapshots" / commit)
        for ref in refs: (home / "refs" / ref).write_text(commit)
        if name == "pickled": (home / "snapshots" / commit / "model.safetensors").rename(home / "snapshots" / commit / "pytorch_model.bin")
    env = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    out = subprocess.run([sys.executable, "-c", HUB], env=env, capture_output=True, text=True, timeout=300)
    lines = out.stdout.splitlines()
    assert lines[0] == f"hub:some/encoder@{'a' * 40} hub:some/encoder@{'a' * 40} torch.Size([1, 384])", out.stderr[-2000:]
    assert "not on this machine" in lines[1] and "some/pickled" in lines[2] and "READ" not in lines


def test_vectors_do_not_depend_on_the_number_of_threads(tmp_path):
    "A cache outlives the run that filled it: what one thread and two would compute must be the same bytes."
    texts, before, found = ["sinus tachycardia", "premature atrial complex", "left bundle branch block"], torch.get_num_threads(), {}
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found[threads] = T.embed_texts(texts, cache=tmp_path / str(threads))
            assert torch.get_num_threads() == threads
    finally: torch.set_num_threads(before)
    assert torch.equal(found[1], found[2])


def test_vectors_of_another_kind_of_processor_are_not_taken_from_the_cache(monkeypatch):
    key = T.cache_key(["a"], "minilm", 256)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "OTHER")
    assert T.cache_key(["a"], "minilm", 256) != key
