import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import save_file
from torch import Tensor, nn

from stylegan_inversion import hub
from stylegan_inversion.errors import CheckpointError, ModelNotFoundError
from stylegan_inversion.models.generator import Generator, GeneratorConfig


@dataclass(frozen=True)
class TinyConfig:
    width: int = 4
    sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"`width` must be >= 1, got {self.width}.")


class Tiny(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.width, len(config.sizes))
        self.norm = nn.BatchNorm1d(config.width)  # brings an int64 tensor


def state(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys() and all(torch.equal(tensor, b[key]) for key, tensor in a.items())


def model_folder(folder: Path) -> Path:
    hub.write_config({"width": 4}, folder)
    return folder


def record_downloads(monkeypatch: pytest.MonkeyPatch, folder: Path) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Let the Hub answer with a folder; the arguments of each call go to the list."""
    calls = []

    def download(*args: Any, **kwargs: Any) -> str:
        calls.append((args, kwargs))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


# --- finding a model


def test_builtin_models_are_those_with_a_config() -> None:
    names = hub.builtin_models()
    assert "faces64" in names and "samples" not in names
    assert all((hub.builtin_path(name) / "config.json").is_file() for name in names)


def test_find_a_builtin_model() -> None:
    assert hub.find_model("faces64") == hub.builtin_path("faces64")
    assert hub.find_model("faces64", subfolder="generator") == hub.builtin_path("faces64/generator")


def test_a_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model_folder(tmp_path / "faces64")
    model_folder(tmp_path / "org" / "repo")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # not called
    assert hub.find_model("faces64") == Path("faces64")
    assert hub.find_model("org/repo") == Path("org/repo")
    assert hub.find_model(tmp_path / "faces64") == tmp_path / "faces64"


@pytest.mark.parametrize("name", ["faces65", "./org/repo", "/org/repo", "~/repo", "a/b/c", "repo/", "", "generator"])
def test_an_unknown_name_names_the_known_ones(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=rf"No model '{name}': it is not a folder, .* models are .*faces64"):
        hub.find_model(name)


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no config.json, so it is not a model saved by this package\."):
        hub.find_model(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"faces64.absent holds no config.json"):
        hub.find_model("faces64", subfolder="absent")


@pytest.mark.parametrize("subfolder", ["..", "../..", "a/../../b", "/etc", "a\\..\\..", "C:\\", "C:"])
def test_a_subfolder_stays_inside(subfolder: str, tmp_path: Path) -> None:
    model_folder(tmp_path)
    inside = model_folder(tmp_path / "a" / "b")
    for name in (inside, "faces64", "org/repo"):
        with pytest.raises(
            ValueError, match=r"`subfolder` must be a relative path inside the model, without '\.\.', got"
        ):
            hub.find_model(name, subfolder=subfolder)


@pytest.mark.parametrize("subfolder", ["a/b", "a/b/", "./a/b", "a\\b"])
def test_spellings_of_a_subfolder(subfolder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model_folder(tmp_path / "a" / "b")
    assert hub.find_model(tmp_path, subfolder=subfolder) == expected
    calls = record_downloads(monkeypatch, tmp_path)
    assert hub.find_model("org/repo", subfolder=subfolder) == expected
    assert calls[0][1]["allow_patterns"] == ["a/b/*.json", "a/b/*model.safetensors"]


# --- the Hub


def test_what_the_hub_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_downloads(monkeypatch, tmp_path)
    model_folder(tmp_path)
    found = hub.find_model(
        "org/repo", revision="v1", token="t", cache_dir=tmp_path / "c", local_files_only=True, force_download=True
    )
    assert found == tmp_path
    assert calls == [
        (
            (),
            {
                "repo_id": "org/repo",
                "revision": "v1",
                "token": "t",
                "cache_dir": str(tmp_path / "c"),
                "local_files_only": True,
                "force_download": True,
                "allow_patterns": ["*.json", "*model.safetensors"],
                "library_name": "stylegan_inversion",
            },
        )
    ]


def http_error(cls: type[Any]) -> Exception:
    """An error of the Hub's client, whichever HTTP library it is built on."""
    http = sys.modules[hub_errors.HTTPError.__module__.partition(".")[0]]
    request = http.Request("GET", "https://huggingface.co/api/models/org/repo")
    return cls("the answer", response=http.Response(403, request=request))


def transport_error(name: str) -> Exception:
    return getattr(sys.modules[hub_errors.HTTPError.__module__.partition(".")[0]], name)("the line was cut")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            hub_errors.LocalEntryNotFoundError("x"),
            r"'org/repo' is not in the cache and the Hub cannot be .*: .*faces64",
        ),
        (http_error(hub_errors.GatedRepoError), r"'org/repo' is gated: accept its terms on the Hub and pass `token`\."),
        (http_error(hub_errors.RevisionNotFoundError), r"'org/repo' has no revision 'v9'\."),
        (http_error(hub_errors.RepositoryNotFoundError), r"The Hub has no repository 'org/repo', or it is private"),
        (http_error(hub_errors.HfHubHTTPError), r"'org/repo' could not be fetched from the Hub: the answer"),
        (transport_error("ConnectError"), r"'org/repo' could not be fetched from the Hub: the line was cut"),
        (transport_error("ReadTimeout"), r"'org/repo' could not be fetched from the Hub: the line was cut"),
        (transport_error("RemoteProtocolError"), r"'org/repo' could not be fetched from the Hub: the line was cut"),
        (transport_error("ProxyError"), r"'org/repo' could not be fetched from the Hub: the line was cut"),
        (hub_errors.HFValidationError("bad name"), r"'org/repo' could not be fetched from the Hub: bad name"),
        (OSError("disk full"), r"'org/repo' could not be fetched from the Hub: disk full"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_of_the_hub(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelNotFoundError, match=message) as caught:
        hub.find_model("org/repo", revision="v9")
    assert caught.value.__cause__ is error


class StubHub(BaseHTTPRequestHandler):
    """As much of the Hub as `snapshot_download` talks to: one public model, org/tiny, at `main`."""

    protocol_version = "HTTP/1.1"
    commit = "1" * 40
    files: dict[str, bytes] = {}  # noqa: RUF012  set by the fixture

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        prefix = f"/org/tiny/resolve/{self.commit}/"
        if "hangs-up" in path:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        elif path.startswith("/api/models/org/gated"):
            self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif path in ("/api/models/org/tiny", "/api/models/org/tiny/revision/main"):
            self.answer(200, json.dumps({"_id": "1", "id": "org/tiny", "sha": self.commit, "siblings": []}).encode())
        elif path.startswith("/api/models/org/tiny/revision/"):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif path == f"/api/models/org/tiny/tree/{self.commit}":
            entries = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in self.files.items()
            ]
            self.answer(200, json.dumps(entries).encode())
        elif path.startswith(prefix) and path[len(prefix) :] in self.files:
            body = self.files[path[len(prefix) :]]
            self.answer(200, body, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": self.commit})
        else:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(body)),
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def stub_hub(tmp_path: Path) -> Iterator[str]:
    hub.save_module(Tiny(TinyConfig()), tmp_path / "source" / "encoder")
    model_folder(tmp_path / "source")
    (tmp_path / "source" / "code.py").write_text("raise SystemExit\n")
    names = ("config.json", "code.py", "encoder/config.json", "encoder/model.safetensors")
    handler = type("Handler", (StubHub,), {"files": {n: (tmp_path / "source" / n).read_bytes() for n in names}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


FIND_ALL = """
import json, sys
from stylegan_inversion import hub
from stylegan_inversion.errors import ModelNotFoundError
for request in json.loads(sys.argv[1]):
    try:
        print(json.dumps(str(hub.find_model(**request))))
    except ModelNotFoundError as e:
        print(json.dumps(f"{type(e).__name__}: {e}"))
"""


def find_all(requests: list[dict[str, Any]], cache: Path, **environment: str) -> list[str]:
    """Call `find_model` in a process of its own: the Hub's client reads its environment when it is imported."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    environment = {
        **plain,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    } | environment
    done = subprocess.run(
        [sys.executable, "-c", FIND_ALL, json.dumps(requests)],
        env=environment,
        cwd=Path(hub.__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_round_trip_through_a_hub(stub_hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    online = find_all(
        [
            {"name_or_path": "org/tiny", "local_files_only": True},
            {"name_or_path": "org/tiny", "subfolder": "encoder"},
            {"name_or_path": "org/tiny"},
            {"name_or_path": "org/tiny", "revision": "v9"},
            {"name_or_path": "org/absent"},
            {"name_or_path": "org/gated"},
            {"name_or_path": "org/hangs-up"},
        ],
        cache,
        HF_ENDPOINT=stub_hub,
    )
    assert online[0].startswith("ModelNotFoundError: 'org/tiny' is not in the cache")
    encoder, root = Path(online[1]), Path(online[2])
    assert root == encoder.parent and cache in root.parents
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert files == ["config.json", "encoder/config.json", "encoder/model.safetensors"]  # and no code
    assert_same(
        state(hub.load_module(Tiny, TinyConfig, encoder)),
        state(hub.load_module(Tiny, TinyConfig, tmp_path / "source" / "encoder")),
    )
    assert online[3] == "ModelNotFoundError: 'org/tiny' has no revision 'v9'."
    assert online[4].startswith("ModelNotFoundError: The Hub has no repository 'org/absent'")
    assert online[5].startswith("ModelNotFoundError: 'org/gated' is gated")
    assert online[6].startswith("ModelNotFoundError: 'org/hangs-up' ")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert hub.find_model("org/tiny", subfolder="encoder", cache_dir=cache / "hub") == encoder
    with pytest.raises(ModelNotFoundError, match=r"'org/absent' is not in the cache and the Hub cannot be reached"):
        hub.find_model("org/absent", cache_dir=cache / "hub")


# --- files


def test_config_round_trip(tmp_path: Path) -> None:
    config = {"a": 1, "b": [1.5, "ü"], "c": None}
    hub.write_config(config, tmp_path / "new" / "folder")
    assert hub.read_config(tmp_path / "new" / "folder") == config
    hub.write_config({"a": 2}, tmp_path, name="other.json")
    assert json.loads((tmp_path / "other.json").read_text()) == {"a": 2}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config.json cannot be read as JSON: .*No such file"),
        (b"{", r"config.json cannot be read as JSON: "),
        (b"\xff\xfe{}", r"config.json cannot be read as JSON: .*utf-8"),
        (b"[" * 100_000, r"config.json cannot be read as JSON: "),
        (b"[1]", r"config.json must hold a JSON object, got list\."),
        (b"null", r"config.json must hold a JSON object, got NoneType\."),
        (b"{}" + b" " * 1_000_000, r"config.json is larger than 1000000 bytes, so it is not a config\."),
    ],
    ids=["missing", "cut", "not UTF-8", "deep", "list", "null", "large"],
)
def test_bad_config(content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        hub.read_config(tmp_path)


def test_tensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.safetensors"
    tensors = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.tensor(3), "c": torch.ones(2, requires_grad=True)}
    hub.write_tensors(tensors, path)
    assert_same(hub.read_tensors(path), {key: tensor.detach() for key, tensor in tensors.items()})


@pytest.mark.parametrize("fault", ["missing", "empty", "cut", "other", "folder"])
def test_damaged_tensors(fault: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    content = path.read_bytes()
    path.unlink()
    if fault == "folder":
        path.mkdir()
    elif fault != "missing":
        path.write_bytes({"empty": b"", "cut": content[:-10], "other": b"PK\x03\x04" * 20}[fault])
    with pytest.raises(CheckpointError, match=r"x.safetensors cannot be read as safetensors: "):
        hub.read_tensors(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\3\4" + b"\0" * 90, "it is a zip archive, perhaps PyTorch's .pt, which `from_single_file` reads. Fetch"),
        (b"\x80\2}q\0.", "it is a pickle, which `from_single_file` reads"),
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "it is a web page. Fetch or save it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "it is a pointer of Git LFS; `git lfs pull` fetches the file",
        ),
    ],
)
def test_files_that_were_only_renamed(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors cannot be read as safetensors: {message}"):
        hub.read_tensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("start", [0x80, ord("P"), ord("<"), 0x4B50])
def test_a_header_whose_length_looks_like_another_format(start: int, tmp_path: Path) -> None:
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (tmp_path / "x").write_bytes(start.to_bytes(8, "little") + text.ljust(start) + b"\0\0\x80?")
    assert hub.read_tensors(tmp_path / "x")["a"].tolist() == [1.0]


def test_a_header_that_would_take_minutes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({f"a{i}": torch.zeros(0) for i in range(40_000)}, path)
    with pytest.raises(CheckpointError, match=r"its header would have \d+ bytes, and at most 2000000 are read"):
        hub.read_tensors(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tensors_that_are_not_finite(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"good": torch.ones(3), "bad": torch.tensor([0.0, value], dtype=dtype)}, path)
    with pytest.raises(CheckpointError, match=r"x.safetensors: tensor 'bad' holds NaN or infinity\."):
        hub.read_tensors(path)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.write_config({"a": 1}, tmp_path)
    hub.write_tensors({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def half(_tensors: dict[str, Tensor], path: Path, **_kwargs: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(hub, "save_file", half)
    with pytest.raises(CheckpointError, match=r"could not be written: No space left.*before is untouched"):
        hub.write_tensors({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(TypeError, match="not JSON serializable"):
        hub.write_config({"a": object()}, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_copy_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"new")
    hub.copy_file(tmp_path / "a", tmp_path / "folder" / "b")
    assert (tmp_path / "folder" / "b").read_bytes() == b"new"
    before = (tmp_path / "folder" / "b").stat()
    hub.copy_file(tmp_path / "a", tmp_path / "folder" / "b")
    assert (tmp_path / "folder" / "b").stat() == before  # the same already: left alone

    def half(_source: Path, path: Path) -> None:
        path.write_bytes(b"ha")
        raise OSError("No space left on device")

    monkeypatch.setattr(hub.shutil, "copyfile", half)
    (tmp_path / "a").write_bytes(b"newer")
    with pytest.raises(CheckpointError, match="could not be written: No space left"):
        hub.copy_file(tmp_path / "a", tmp_path / "folder" / "b")
    assert [path.read_bytes() for path in (tmp_path / "folder").iterdir()] == [b"new"]

    monkeypatch.setattr(Path, "write_text", lambda *_: half(tmp_path, _[0]))
    with pytest.raises(CheckpointError, match=r"config.json could not be written: No space left"):
        hub.write_config({"a": 2}, tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["b"]


# --- networks


def test_module_round_trip(tmp_path: Path) -> None:
    config = GeneratorConfig(resolution=16, z_dim=6, w_dim=8, mapping_layers=2, channel_base=64, channel_max=8)
    generator = Generator(config)
    before = state(generator)
    hub.save_module(generator, tmp_path / "generator")
    assert_same(state(generator), before)
    assert generator.training and all(parameter.requires_grad for parameter in generator.parameters())
    assert sorted(path.name for path in (tmp_path / "generator").iterdir()) == ["config.json", "model.safetensors"]

    loaded = hub.load_module(Generator, GeneratorConfig, tmp_path / "generator")
    assert loaded.config == config
    assert_same(state(loaded), before)
    assert not loaded.training and not any(parameter.requires_grad for parameter in loaded.parameters())
    w_plus = torch.zeros(1, generator.num_ws, 8)
    assert torch.equal(loaded.synthesis(w_plus), generator.synthesis(w_plus))


def test_tuples_of_a_config_come_back_as_tuples(tmp_path: Path) -> None:
    hub.save_module(Tiny(TinyConfig(3, (4, 5, 6))), tmp_path)
    assert hub.load_module(Tiny, TinyConfig, tmp_path).config == TinyConfig(3, (4, 5, 6))


def test_half_precision_in_the_file_is_float32_in_memory(tmp_path: Path) -> None:
    module = Tiny(TinyConfig())
    hub.save_module(module, tmp_path, dtype=torch.float16)
    stored = hub.read_tensors(tmp_path / "model.safetensors")
    assert stored["linear.weight"].dtype == torch.float16
    assert stored["norm.num_batches_tracked"].dtype == torch.int64
    loaded = hub.load_module(Tiny, TinyConfig, tmp_path)
    assert loaded.linear.weight.dtype == torch.float32
    assert torch.equal(loaded.linear.weight, module.linear.weight.half().float())


def test_variants(tmp_path: Path) -> None:
    module = Tiny(TinyConfig())
    hub.save_module(module, tmp_path, dtype=torch.float16, variant="fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.fp16.safetensors"]
    assert torch.equal(
        hub.load_module(Tiny, TinyConfig, tmp_path, variant="fp16").linear.weight, module.linear.weight.half().float()
    )
    with pytest.raises(CheckpointError, match=r"has no variant 'bf16' \(model.bf16.safetensors\); leave `variant` out"):
        hub.load_module(Tiny, TinyConfig, tmp_path, variant="bf16")
    for variant in ("", "a/b", "..", "a b", "x" * 33):
        with pytest.raises(ValueError, match=r"`variant` must be a word such as 'fp16', got "):
            hub.find_model("faces64", variant=variant)
    module.linear.weight.data.fill_(1e9)
    with pytest.raises(ValueError, match=r"`dtype` torch.float16 cannot hold the weights of this Tiny\."):
        hub.save_module(module, tmp_path, dtype=torch.float16)


def test_which_files_of_a_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = record_downloads(monkeypatch, model_folder(tmp_path))
    hub.find_model("org/repo", variant="fp16")
    assert calls[0][1]["allow_patterns"] == ["*.json", "*model.fp16.safetensors", "*directions/model.safetensors"]


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_is_positive(timeout: float) -> None:
    with pytest.raises(ValueError, match=r"`timeout` must be a positive number of seconds, got "):
        hub.find_model("faces64", timeout=timeout)


def test_dtype_on_request(tmp_path: Path) -> None:
    hub.save_module(Tiny(TinyConfig()), tmp_path)
    loaded = hub.load_module(Tiny, TinyConfig, tmp_path, dtype=torch.float64, device="cpu")
    assert loaded.linear.weight.dtype == torch.float64
    assert state(loaded)["norm.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widht": 4}, r"config.json does not describe a Tiny: .*unexpected keyword argument 'widht'"),
        ({"width": 0}, r"config.json does not describe a Tiny: `width` must be >= 1, got 0\."),
        ({"width": "4"}, r"config.json does not describe a Tiny: "),
        ({"width": 4.5}, r"config.json does not describe a Tiny: "),
        ({"width": None}, r"config.json does not describe a Tiny: "),
        ({"sizes": 3}, r"config.json does not describe a Tiny: "),
    ],
)
def test_a_config_that_does_not_fit(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    hub.save_module(Tiny(TinyConfig()), tmp_path)
    hub.write_config(fields, tmp_path)
    with pytest.raises(CheckpointError, match=message):
        hub.load_module(Tiny, TinyConfig, tmp_path)


@pytest.mark.parametrize("fields", [{"resolution": 64.0}, {"resolution": "64"}, {"w_dim": 8.5}, {"z_dim": [1, 2]}])
def test_a_generator_config_of_the_wrong_type(fields: dict[str, Any], tmp_path: Path) -> None:
    hub.write_config({"resolution": 16, "channel_base": 64, **fields}, tmp_path)
    with pytest.raises(CheckpointError, match=r"config.json does not describe a Generator: "):
        hub.load_module(Generator, GeneratorConfig, tmp_path)


def test_load_without_weights(tmp_path: Path) -> None:
    hub.write_config({}, tmp_path)
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read as safetensors"):
        hub.load_module(Tiny, TinyConfig, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"linear.bias": None}, r"^the file does not fit Tiny: missing linear.bias\.$"),
        ({"extra": torch.ones(1)}, r"^the file does not fit Tiny: unexpected extra\.$"),
        ({"linear.bias": torch.ones(3)}, r"linear.bias is \(3,\), not \(2,\)\.$"),
        ({"linear.bias": torch.ones(1)}, r"linear.bias is \(1,\), not \(2,\)\.$"),  # would broadcast
        ({"linear.bias": torch.ones(2, dtype=torch.int64)}, r"linear.bias is torch.int64, not torch.float32\.$"),
        (
            {"linear.bias": None, "extra": torch.ones(1), "linear.weight": torch.ones(1)},
            r"missing linear.bias; unexpected extra; linear.weight is \(1,\), not \(2, 4\)\.$",
        ),
        ({f"extra{i}": torch.ones(1) for i in range(5)}, r"unexpected extra3; unexpected extra4\.$"),
        ({f"extra{i}": torch.ones(1) for i in range(8)}, r"unexpected extra3; unexpected extra4 and 3 more\.$"),
    ],
)
def test_weights_that_do_not_fit_leave_the_network_as_it_was(change: dict[str, Any], message: str) -> None:
    module, other = Tiny(TinyConfig()), Tiny(TinyConfig())
    before = state(module)
    weights = {key: tensor for key, tensor in {**state(other), **change}.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=message):
        hub.fill_module(module, weights, source="the file")
    assert_same(state(module), before)
    assert module.training and all(parameter.requires_grad for parameter in module.parameters())


def test_fill_module(tmp_path: Path) -> None:
    module, other = Tiny(TinyConfig()), Tiny(TinyConfig())
    hub.fill_module(module, state(other), source="the file")
    assert_same(state(module), state(other))
    assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())
    with torch.no_grad():
        other.linear.weight.zero_()
    assert module.linear.weight.abs().max() > 0  # a copy


def test_a_mere_folder_does_not_hide_a_built_in_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faces64").mkdir()
    monkeypatch.chdir(tmp_path)
    assert hub.find_model("faces64") == hub.builtin_path("faces64")
    hub.write_config({}, tmp_path / "faces64")
    assert hub.find_model("faces64") == Path("faces64")


def test_loading_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    hub.load_module(Generator, GeneratorConfig, hub.builtin_path("faces64/generator"))
    assert torch.equal(torch.get_rng_state(), state)
