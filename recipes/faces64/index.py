"""Last step of faces64: `index.json`, the list of what the model holds, where it is from, and its sha256.

usage: python recipes/faces64/index.py
"""

import hashlib
import json
import math
from pathlib import Path

from safetensors import safe_open

from stylegan_inversion.storage import builtin_path, write_config

FACE_API = "npm package @vladmandic/face-api 1.7.15"
SOURCES = {
    "generator": (
        "trained on samples of the PyPI package gan-face-generate 1.1.1 (DigiFace-1M)",
        "non-commercial research",
    ),
    "psp_encoder": ("trained on the generator's data and samples, recipes/faces64/psp.yaml", "as the generator"),
    "e4e_encoder": ("trained on the generator's data and samples, recipes/faces64/e4e.yaml", "as the generator"),
    "sfe_encoder": ("trained on the generator's data, recipes/faces64/sfe.yaml, sfe_editor.yaml", "as the generator"),
    "directions": ("InterFaceGAN on faces64's own samples, recipes/faces64/README.md", "as the generator"),
    "face": (FACE_API, "MIT"),
}


def main() -> None:
    """Read every weight file and write the index."""
    root = builtin_path("faces64")
    entries = {}
    for path in sorted(root.rglob("*.safetensors")):
        name = path.relative_to(root)
        source, licence = SOURCES[name.parts[0]]
        with safe_open(path, "pt") as file:
            parameters = sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
        entries[name.as_posix()] = {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
            "parameters": parameters,
            "source": source,
            "license": licence,
        }
    write_config({"files": entries}, root, name="index.json")
    print(json.dumps({name: entry["bytes"] for name, entry in entries.items()}, indent=2))
    print(f"{sum(Path(root / name).stat().st_size for name in entries) / 1e6:.1f} MB in all")


if __name__ == "__main__":
    main()
