"""Files that try to run code, by name: bytes, and what the reader must say. The code would write the file SENTINEL.

Run as a script in a process of its own: reads every payload of a folder under an audit hook and prints what happened.
"""

import io
import json
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

SENTINEL = "executed"
LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
PREAMBLE = LEGACY_MAGIC + b"\x80\x02M\xe9\x03.\x80\x02}q\0X\r\0\0\0little_endianq\x01\x88s."
WATCHED = ("open", "exec", "compile", "import", "marshal.", "pickle.", "os.", "subprocess.", "socket.", "ctypes.")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def arguments(*values: Any) -> bytes:
    return b"(" + b"".join(v if isinstance(v, bytes) else text(v) for v in values) + b"t"


def named(module: str, name: str, *, stack: bool = False) -> bytes:
    return text(module) + text(name) + b"\x93" if stack else f"c{module}\n{name}\n".encode()


def call(module: str, name: str, *values: Any, stack: bool = False, how: bytes = b"R") -> bytes:
    """The body of a pickle that calls a name."""
    return named(module, name, stack=stack) + arguments(*values) + how


def whole(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def zip_of(compression: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    """A zip of members; two underscores in a name stand for a slash."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/"), data)
    return buffer.getvalue()


def zipped(pickled: bytes, **members: bytes) -> bytes:
    """A zip as PyTorch writes it."""
    inside = {"data.pkl": pickled, "byteorder": b"little", **members}
    return zip_of(**{f"archive__{name}": data for name, data in inside.items()})


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def nested(stream: bytes) -> bytes:
    """A call of PyTorch's reader of storages inside a pickle."""
    return named("torch.storage", "_load_from_bytes") + b"B" + struct.pack("<I", len(stream)) + stream + b"\x85R"


def storage_stream(numel: int) -> bytes:
    """A storage of floats as PyTorch's old format stores it."""
    persistent = arguments("storage", named("torch", "FloatStorage"), "0", "cpu", b"J" + struct.pack("<i", numel))
    keys = whole(b"]" + text("0") + b"a")
    return PREAMBLE + whole(persistent + b"Q") + keys + struct.pack("<q", numel) + bytes(4 * numel)


def persistent_object(source: str) -> bytes:
    meta = text("class_name") + text("Generator") + text("module_src") + text(source) + text("state") + b"}"
    return named("torch_utils.persistence", "_reconstruct_persistent_obj") + b"}(" + meta + b"u\x85R"


def payloads(sentinel: Path) -> dict[str, tuple[bytes, str]]:
    """Every payload: its bytes, and a pattern of the message ("" where it is read, as plain values)."""
    code = f"open({str(sentinel)!r}, 'w').close()"
    shell = f"touch {sentinel}"
    system = call("posix", "system", shell)
    exec_ = call("builtins", "exec", code)
    asks, unwritten = "asks for `{}`", "an operation that PyTorch does not write"
    called = {
        "os_system": ("os", "system", shell),
        "posix_system": ("posix", "system", shell),
        "nt_system": ("nt", "system", shell),
        "exec": ("builtins", "exec", code),
        "exec_python2": ("__builtin__", "exec", code),
        "eval": ("builtins", "eval", f"__import__('os').system({shell!r})"),
        "open": ("builtins", "open", str(sentinel), "w"),
        "io_open": ("_io", "open", str(sentinel), "w"),
        "compile": ("builtins", "compile", code, "x", "exec"),
        "import": ("builtins", "__import__", "antigravity"),
        "importlib": ("importlib", "import_module", "antigravity"),
        "getattr": ("builtins", "getattr", "x", "y"),
        "popen": ("subprocess", "Popen", shell),
        "check_output": ("subprocess", "check_output", shell),
        "pty": ("pty", "spawn", shell),
        "timeit": ("timeit", "timeit", code),
        "runpy": ("runpy", "_run_code", code),
        "code_interpreter": ("code", "InteractiveInterpreter.runcode", code),
        "pickle_loads": ("pickle", "loads", whole(system).decode("latin-1")),
        "torch_load": ("torch", "load", str(sentinel)),
        "torch_serialization": ("torch.serialization", "load", str(sentinel)),
        "torch_hub": ("torch.hub", "load", "x/y", "z"),
        "torch_jit": ("torch.jit", "load", str(sentinel)),
        "numpy_load": ("numpy", "load", str(sentinel)),
        "numpy_runstring": ("numpy.testing._private.utils", "runstring", code, b"}"),
        "marshal": ("marshal", "loads", "x"),
        "function_type": ("types", "FunctionType", "x"),
        "partial": ("functools", "partial", "x"),
        "decode": ("_codecs", "decode", "x", "latin1"),
        "attrgetter": ("operator", "attrgetter", "system"),
        "ctypes": ("ctypes", "CDLL", "libc.so.6"),
        "webbrowser": ("webbrowser", "open", "http://127.0.0.1"),
        "rmtree": ("shutil", "rmtree", str(sentinel)),
        "dill": ("dill._dill", "_load_type", "FunctionType"),
        "copyreg": ("copyreg", "_reconstructor"),
        "lambda_layer": ("torch.nn.modules.container", "Sequential", code),
    }
    bad = {
        name: (whole(call(module, function, *values)), asks.format(f"{module}.{function}"))
        for name, (module, function, *values) in called.items()
    }
    tensor = named("torch._utils", "_rebuild_tensor_v2")
    storage = arguments("storage", named("posix", "system"), "0", "cpu", b"K\1") + b"Q"
    rebuild = call("numpy.core.multiarray", "_reconstruct", named("subprocess", "Popen"), b")")
    return bad | {
        "protocol_4": (whole(call("posix", "system", shell, stack=True), 4), asks.format("posix.system")),
        "protocol_5": (whole(call("posix", "system", shell, stack=True), 5), asks.format("posix.system")),
        "dotted": (whole(call("torch", "serialization.load", "x", stack=True), 4), "torch.serialization.load"),
        "dotted_class": (whole(call("collections", "OrderedDict.__init__", stack=True), 4), "OrderedDict.__init"),
        "dotted_module": (whole(call("torch._utils.os", "system", shell)), asks.format("torch._utils.os.system")),
        "name_as_number": (whole(b"K\1K\2\x93"), "STACK_GLOBAL requires str"),
        "new_object": (whole(call("subprocess", "Popen", shell, how=b"\x81")), asks.format("subprocess.Popen")),
        "new_object_ex": (whole(named("builtins", "set") + b")}\x92"), unwritten),
        "inst": (whole(b"(" + text(shell) + b"iposix\nsystem\n"), unwritten),
        "obj": (whole(b"(" + named("builtins", "set") + text(shell) + b"o"), unwritten),
        "extension": (whole(b"\x82\x01"), unwritten),
        "text_protocol": (whole(b"S'x'\n"), unwritten),
        "persistent_text": (whole(b"Px\n"), unwritten),
        "persistent_in_pkl": (whole(text("x") + b"Q"), "data outside of the pickle"),
        "out_of_band": (whole(b"\x97", 5), unwritten),
        "build_on_a_name": (whole(named("builtins", "set") + b"}b"), "a state for a Name"),
        "setstate": (whole(b"](" + text("__setstate__") + system + b"eN0}b"), asks.format("posix.system")),
        "build_a_list": (whole(b"]}b"), "a state for a list"),
        "call_a_text": (whole(text("x") + b")R"), "a call of str"),
        "call_a_class": (whole(named("numpy", "ndarray") + b")R"), "a call of numpy.ndarray"),
        "call_a_storage_class": (whole(named("torch", "FloatStorage") + b")R"), "a call of torch.FloatStorage"),
        "codec": (whole(call("_codecs", "encode", "x", "zlib_codec")), "another encoding than latin1: zlib_codec"),
        "hooks": (whole(tensor + b"(NK\0))\x89}(" + text("hook") + named("posix", "system") + b"utR"), "posix.system"),
        "namespace": (whole(named("argparse", "Namespace") + b")\x81}" + text("f") + system + b"sb"), "posix.system"),
        "numpy_class": (whole(rebuild), asks.format("subprocess.Popen")),
        "tensorflow": (
            whole(call("dnnlib.tflib.network", "Network", code)),
            "TensorFlow network of the first StyleGAN",
        ),
        "nested": (whole(nested(PREAMBLE + whole(system))), asks.format("posix.system")),
        "nested_bare": (whole(nested(whole(exec_))), asks.format("builtins.exec")),
        "nested_twice": (whole(nested(whole(nested(whole(system))))), asks.format("torch.storage._load_from_bytes")),
        "nested_in_zip": (zipped(whole(nested(whole(system)))), asks.format("torch.storage._load_from_bytes")),
        "nested_zip": (whole(nested(zipped(whole(system)))), unwritten),
        "zip": (zipped(whole(system)), asks.format("posix.system")),
        "zip_persistent_class": (zipped(whole(storage)), asks.format("posix.system")),
        "zip_persistent_other": (zipped(whole(system + b"Q")), asks.format("posix.system")),
        "legacy_version": (LEGACY_MAGIC + whole(system), asks.format("posix.system")),
        "legacy_system": (LEGACY_MAGIC + b"\x80\x02M\xe9\x03." + whole(exec_), asks.format("builtins.exec")),
        "legacy_value": (PREAMBLE + whole(system), asks.format("posix.system")),
        "legacy_keys": (PREAMBLE + whole(b"}") + whole(system), asks.format("posix.system")),
        "torchscript": (zipped(whole(b"}"), constants__x=b"", code__x=code.encode()), "It is TorchScript"),
        "torchscript_constants": (zipped(whole(b"}"), **{"constants.pkl": whole(system)}), "It is TorchScript"),
        "npy_objects": (npy("'|O'", "(1,)", whole(system)), "Python objects in dtype"),
        "npy_header": (npy(code, "()"), "malformed node"),
        "protocol_0": (pickle.dumps({"x": 1}, 0), "It is a text that begins"),
        "source_is_kept_unread": (whole(persistent_object(code)), ""),
        "long_source": (whole(persistent_object(code + "#" * 100_000)), ""),
        "class_as_a_value": (whole(named("argparse", "Namespace")), ""),
        "name_of_a_key": (whole(b"}" + text("__reduce__") + text(shell) + b"s"), ""),
    }


def main(folder: Path) -> None:
    """Read every file of a folder in this process; print {name: message, or ""} and the events that were seen.

    Opening the file itself is no such event, nor parsing the header of a `.npy` as a literal, which NumPy does.
    """
    from stylegan_inversion.checkpoints.read import read_checkpoint
    from stylegan_inversion.errors import CheckpointError

    events: list[str] = []
    watching = False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        own = event == "open" and str(arguments[0]).endswith(".bin") and arguments[1] in ("r", "rb", None)
        header = event == "compile" and arguments[1] == "<unknown>"
        if watching and event.startswith(WATCHED) and not own and not header:
            events.append(f"{event} {arguments}")

    paths = sorted(folder.glob("*.bin"))
    sys.addaudithook(watch)
    messages: dict[str, str] = {}
    for again in (False, True):  # first without watching: Python and NumPy import modules at their first use
        watching = again
        for path in paths:
            try:
                read_checkpoint(path)
                messages[path.stem] = ""
            except CheckpointError as e:
                messages[path.stem] = str(e)
    watching = False
    print(json.dumps({"messages": messages, "events": events}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
