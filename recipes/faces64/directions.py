"""Step 9 of faces64: the edit directions smile, age, gender and yaw, by InterFaceGAN on the built-in face scores.

usage: python recipes/faces64/directions.py [--num-samples 3584] [--num-points 1600] [--num-tests 500] [--output DIR]

`find_directions` does it, as `stylegan-inversion find-directions` does for any model, here with more images. The number
of points matters: of 400, the smile rose for 90 % as far as 2 units from the middle, of 1,600 as far as 4. About an
hour on one core. Needs scikit-learn. What ships was found by an earlier version, which took the gradients of each score
at points of its own, spread along its own global boundary only, and scored mirror images too for that boundary.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from stylegan_inversion.editing.directions import save_directions
from stylegan_inversion.editing.find_directions import find_directions
from stylegan_inversion.evaluation.attributes import FACE_SCORES, face_score
from stylegan_inversion.models.generator import Generator, GeneratorConfig
from stylegan_inversion.storage import builtin_path, load_module

CROP_SCALE = 0.74  # of config.json
PHOTO_LIMITS = {"yaw": 4.0}  # measured on photos; see `Direction`


def main() -> None:
    """Find, measure and write the directions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=3584, help="images for the global boundaries")
    parser.add_argument("--num-points", type=int, default=1600, help="images for the local boundaries")
    parser.add_argument("--num-tests", type=int, default=500, help="images for the ranges, and as many for the shares")
    parser.add_argument("--output", type=Path, default=builtin_path("faces64/directions"))
    args = parser.parse_args()

    found = find_directions(
        load_module(Generator, GeneratorConfig, builtin_path("faces64/generator")),
        face_score([*FACE_SCORES], crop_scale=CROP_SCALE),
        num_samples=args.num_samples,
        num_points=args.num_points,
        num_tests=args.num_tests,
        descriptions=FACE_SCORES,
        progress=True,
    )
    for each in found:
        moves = ", ".join(f"{name} {move:+.2f}" for name, move in each.moves.items())
        print(f"{each.direction.name}: {each.direction.strength_range}, {each.monotone_share:.1%}; moves {moves}")
    directions = {d.name: replace(d, photo_limit=PHOTO_LIMITS.get(d.name)) for d in (each.direction for each in found)}
    save_directions(directions, args.output)


if __name__ == "__main__":
    main()
