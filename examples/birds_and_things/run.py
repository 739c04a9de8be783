"""Golf ball and church from one network, three birds from another, joined into one classifier.

python run.py --things mobilenet_v2-imagenet.safetensors --birds mobilenet_v2-coral-birds.safetensors
    --bird-names inat_bird_labels.txt --photos photos/ -o out/

It runs the commands of README.md one after the other, and draws what they made.
"""

import argparse
import json
import subprocess
import sys
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

HERE = Path(__file__).parent
THINGS = {"golf ball": "574", "church": "497"}  # their places among ImageNet's classes
BIRDS = {
    "blue jay": "Cyanocitta cristata (Blue Jay)",
    "American goldfinch": "Spinus tristis (American Goldfinch)",
    "American flamingo": "Phoenicopterus ruber (American Flamingo)",
}
HALF = 128 / 255  # the birds' network takes (x - 128) / 128


def brickyard(*words: object) -> dict[str, Any]:
    """Run a command, and return what it prints as JSON."""
    print("$ brickyard", *(f'"{word}"' if " " in str(word) else word for word in words), flush=True)
    command = [sys.executable, "-m", "brickyard", *map(str, words), "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return found


def main(words: list[str] | None = None) -> dict[str, tuple[int, int]]:
    """Make the classifier; for each class, how many of its photographs are answered right, and how many there are."""
    parser = argparse.ArgumentParser(description="Join golf ball and church with three birds.")
    parser.add_argument("--things", required=True, help="weights of torchvision's mobilenet_v2 for ImageNet")
    parser.add_argument("--birds", required=True, help="weights of Coral's MobileNetV2 for 965 birds")
    parser.add_argument("--bird-names", required=True, help="its class names, one a line")
    parser.add_argument("--photos", required=True, type=Path, help="folder with things/, birds/ and ask/")
    parser.add_argument("-o", "--output", required=True, type=Path, help="folder to write to")
    given = parser.parse_args(words)
    out: Path = given.output
    if out.exists():
        parser.error(f"{out} exists; give another folder")
    out.mkdir(parents=True)

    def made(name: str) -> Path:
        return out / f"{name}.safetensors"

    task = ",".join(f"{name}={place}" for name, place in THINGS.items())
    brickyard(
        *("disassemble", "torchvision:mobilenet_v2?transforms=IMAGENET1K_V1", "--weights", given.things),
        *("--calibration", given.photos / "things", "--task", task),
        *("--flops", 0.5, "--select", "mda", "-o", made("things")),
    )
    task = ",".join(f"{name}={species}" for name, species in BIRDS.items())
    brickyard(
        *("disassemble", f"{HERE / 'birdnet.py'}:birds", "--weights", given.birds, "--class-names", given.bird_names),
        *("--size", "crop:224", "--mean", HALF, "--std", HALF),
        *("--calibration", given.photos / "birds", "--task", task),
        *("--flops", 1, "--select", "mda", "--heal", "none", "-o", made("birds")),
    )
    brickyard("assemble", made("things"), made("birds"), "-o", made("both"))
    answers = brickyard("predict", made("both"), given.photos / "ask", "--top", 3)["predictions"]
    brickyard("export", made("both"), "-o", out / "both.onnx")

    score = dict.fromkeys((*THINGS, *BIRDS), (0, 0))
    for answer in answers:
        name = Path(answer["image"]).parent.name
        right, count = score.get(name, (0, 0))
        score[name] = right + (answer["classes"][0]["name"] == name), count + 1
    for name, (right, count) in score.items():
        print(f"{name}: {right} of {count} photographs")
    contact_sheet(answers, out / "answers.png")
    parts = [brickyard("show", made(name)) for name in ("things", "birds")]
    sizes = [(out / name).stat().st_size for name in ("both.safetensors", "both.onnx")]
    (out / "diagram.svg").write_text(diagram(parts, score, sizes))
    print(f"written to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    return score


# -- pictures ------------------------------------------------------------------------------------------------


def contact_sheet(answers: list[dict[str, Any]], path: Path, each: int = 4, side: int = 180) -> None:
    """Draw some photographs of each class, and below each the three likeliest answers; green where it is right."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        rows.setdefault(Path(answer["image"]).parent.name, []).append(answer)
    chosen = [answer for row in rows.values() for answer in row[:each]]
    high, wide = side + 66, side + 12
    sheet = Image.new("RGB", (wide * each + 12, high * -(-len(chosen) // each) + 12), "white")
    draw = ImageDraw.Draw(sheet)
    for place, answer in enumerate(chosen):
        x, y = 12 + place % each * wide, 12 + place // each * high
        with Image.open(answer["image"]) as image:
            sheet.paste(ImageOps.fit(image.convert("RGB"), (side, side)), (x, y))
        wanted = Path(answer["image"]).parent.name
        for line, said in enumerate(answer["classes"]):
            top, colour = y + side + 4 + 18 * line, "#bfe3cd" if said["name"] == wanted else "#f0d9c0"
            draw.rectangle((x, top, x + round((side - 1) * said["probability"]), top + 16), fill=colour)
            draw.text((x + 4, top + 2), f"{said['name']} {said['probability']:.1%}", fill="#222222")
    sheet.save(path)


def diagram(parts: list[dict[str, Any]], score: dict[str, tuple[int, int]], sizes: list[int]) -> str:
    """Draw the two networks, the parts that were cut out of them, and the classifier: no photograph is in it."""
    titles = ("MobileNetV2 for ImageNet", "MobileNetV2 for birds")
    drawn, colours = [], ("#2f6f9f", "#b35900")
    for k, (part, title) in enumerate(zip(parts, titles, strict=True)):
        y, colour, source, kept = 24 + 176 * k, colours[k], part["source"], part["selection"]
        classes = [f"{len(source['classes']):,} classes", *costs(source)]
        share = kept["flops"] / source["flops"]
        drawn += box(16, y, 232, title, classes, colour)
        drawn += box(306, y, 232, ", ".join(part["classes"]), [*costs(kept), f"{share:.0%} of the work"], colour)
        drawn += [arrow(252, y + 70, 300, y + 70), arrow(542, y + 70, 590, 170)]
    lines = [
        (name, f"{right} of {count}", colours[name in BIRDS], right / max(1, count))
        for name, (right, count) in score.items()
    ]
    drawn += ['<rect x="596" y="24" width="288" height="316" rx="10" fill="#ffffff" stroke="#444" stroke-width="2"/>']
    drawn += [text(612, 54, "One classifier, five classes", 17, "#111", bold=True)]
    for k, (name, said, colour, right) in enumerate(lines):
        y = 92 + 40 * k
        drawn += [text(612, y, name, 14, colour), text(868, y, said, 14, "#333", end=True)]
        drawn += [f'<rect x="612" y="{y + 7}" width="256" height="6" rx="3" fill="#e4e4e4"/>']
        drawn += [f'<rect x="612" y="{y + 7}" width="{256 * right:.0f}" height="6" rx="3" fill="{colour}"/>']
    file, onnx = (f"{size / 1e6:.1f} MB" for size in sizes)
    drawn += [text(612, 300, "photographs answered right", 13, "#555")]
    drawn += [text(612, 324, f"{file}, as ONNX {onnx}", 13, "#555")]
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 900 364" font-family="sans-serif" role="img">'
    name = "<title>Two networks, a part of each, and the classifier joined of them</title>"
    return "\n".join([head, name, '<rect width="900" height="364" fill="#ffffff"/>', *drawn, "</svg>", ""])


def costs(record: dict[str, Any]) -> list[str]:
    """Parameters and work of a network, as text."""
    return [f"{record['parameters'] / 1e6:.2f} M parameters", f"{record['flops'] / 1e6:.0f} MFLOPs an image"]


def box(x: int, y: int, width: int, title: str, lines: list[str], colour: str) -> list[str]:
    """A box with a title, which may take two lines, and lines of text."""
    first, comma, rest = title.rpartition(", ") if len(title) > 26 else ("", "", title)
    titles = [first + comma.rstrip(), rest] if first else [rest]
    drawn = [
        f'<rect x="{x}" y="{y}" width="{width}" height="140" rx="10" fill="{colour}" fill-opacity="0.08" '
        f'stroke="{colour}" stroke-width="2"/>'
    ]
    drawn += [text(x + 14, y + 28 + 21 * k, line, 15, colour, bold=True) for k, line in enumerate(titles)]
    top = y + 34 + 21 * len(titles)
    return drawn + [text(x + 14, top + 22 * k, line, 13, "#333") for k, line in enumerate(lines)]


def text(x: int, y: int, words: str, size: int, colour: str, *, bold: bool = False, end: bool = False) -> str:
    """A line of text."""
    more = (' font-weight="bold"' if bold else "") + (' text-anchor="end"' if end else "")
    return f'<text x="{x}" y="{y}" font-size="{size}" fill="{colour}"{more}>{escape(words)}</text>'


def arrow(x: int, y: int, to_x: int, to_y: int) -> str:
    """An arrow."""
    line = f"M{x} {y} C{x + 24} {y} {to_x - 24} {to_y} {to_x} {to_y}"
    end = f'<circle cx="{to_x}" cy="{to_y}" r="4" fill="#777"/>'
    return f'<path d="{line}" fill="none" stroke="#777" stroke-width="2"/>{end}'


if __name__ == "__main__":
    main()
