"""Draw the small sample data set of flowers that comes with this repository.

The images are drawings made by this script, not photographs. They let a newcomer try the
classifier at once, without a download; they say nothing about its accuracy on real flowers.
Six categories of the Oxford 102 set (folder names are its category numbers) differ in
the shape and arrangement of their petals. Colors, poses, backgrounds and light overlap.

Make the set again with:  python assets/draw_sample_flowers.py
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFilter

COUNTS = {"train": 24, "valid": 6, "test": 6}
SIZES = [(256, 256), (288, 240), (240, 288), (272, 256), (224, 272), (280, 210)]
SUPERSAMPLE = 2  # everything is drawn this much larger and then reduced, for smooth edges
PETALS = "#f8f6f0 #faebbe #fad432 #f28826 #c83a30 #ec8aac #be96de #7042a8".split()
GROUNDS = {  # background: its colors at the top and at the bottom
    "grass": ("#345c28", "#789e46"),
    "lights": ("#284632", "#8c966e"),
    "soil": ("#4a3426", "#866850"),
    "sky": ("#70a4d8", "#ecded0"),
    "wall": ("#cec0aa", "#96827c"),
    "water": ("#3c6478", "#86a8a4"),
}


def mix(first, second, share):
    """Return the color that lies `share` of the way from the first to the second."""
    return (1 - share) * rgb(first) + share * rgb(second)


def rgb(color):
    """Return a color, given as three numbers or as text such as "#f8f6f0", as an array."""
    return np.array(ImageColor.getrgb(color) if isinstance(color, str) else color, float)


def pixel(color):
    """Return the color as the whole numbers that Pillow takes."""
    return tuple(np.clip(rgb(color), 0, 255).astype(int).tolist())


def rotation(angle):
    """Return the matrix of a rotation by `angle` radians."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


class Petal:
    """The form of a petal or leaf: a blade from `origin` (plus `start`) towards `angle`.

    `sharp` below 0.6 gives a round tip and 1 a pointed one; `root` does the same for the base.
    """

    def __init__(self, angle, length, width, start=0.0, sharp=0.5, root=0.6, bend=0.0, origin=0.0):
        self.angle, self.length, self.width, self.start = angle, length, width, start
        self.sharp, self.root, self.bend, self.origin = sharp, root, bend, origin

    def at(self, along, side):
        """Return points at `along` (0 base, 1 tip) and `side` (-1 and 1 are the two edges)."""
        peak = self.root / (self.root + self.sharp)
        full = peak**self.root * (1 - peak) ** self.sharp
        half = self.width / 2 * along**self.root * (1 - along) ** self.sharp / full
        x = self.start + self.length * along
        y = side * half + self.bend * self.length * along**2
        return np.stack([x, y], -1) @ rotation(self.angle).T + self.origin

    def outline(self, size):
        """Return the edge as a polygon, drawn in towards the base to `size` of the whole."""
        along = (1 - np.cos(np.linspace(0, np.pi, 26))) / 2
        points = np.concatenate([self.at(along, size), self.at(along[::-1], -size)])
        return size * points + (1 - size) * self.at(0.0, 0.0)


class Pen:
    """Draws in a flower's own coordinates: center (0, 0), radius about 1, y pointing down."""

    def __init__(self, image, center, scale, turn=0.0, squash=1.0, axis=0.0, light=0.0):
        """Place the flower: turn it, then squash it along `axis` as if it were tilted away."""
        self.draw, self.center, self.scale = ImageDraw.Draw(image), np.array(center), scale
        self.turn, self.light = turn, light
        tilt = rotation(axis) @ np.diag([1.0, squash]) @ rotation(-axis)
        self.matrix = scale * tilt @ rotation(turn)

    def place(self, points):
        """Turn flower coordinates into pixels, in the form that Pillow takes."""
        return [tuple(p) for p in (np.asarray(points) @ self.matrix.T + self.center).tolist()]

    def shape(self, points, color):
        """Fill the polygon through the points."""
        self.draw.polygon(self.place(points), fill=pixel(color))

    def line(self, points, color, width):
        """Draw a line through the points; its width is in flower units."""
        width = max(1, round(width * self.scale))
        self.draw.line(self.place(points), fill=pixel(color), width=width, joint="curve")

    def oval(self, center, radius, color, stretch=1.0, angle=0.0):
        """Fill an ellipse, `stretch` times longer in the direction of `angle`."""
        turns = np.linspace(0, 2 * np.pi, 28)
        ring = np.stack([stretch * np.cos(turns), np.sin(turns)], 1) * radius
        self.shape(ring @ rotation(angle).T + center, color)

    def petal(self, petal, edge, base, veins=3, vein_strength=0.12):
        """Fill a petal whose color runs from `edge` to `base`, with veins, lit from a side."""
        glow = 1 + 0.16 * np.cos(petal.angle + self.turn - self.light)
        edge, base = glow * rgb(edge), glow * rgb(base)
        self.shape(petal.outline(1.0), 0.72 * edge)
        for step in np.linspace(0, 1, 9):
            self.shape(petal.outline(0.97 - 0.57 * step), mix(edge, base, step))
        for side in np.linspace(-0.6, 0.6, veins):
            shade = mix(mix(edge, base, 0.3), "#3c1e32", vein_strength)
            self.line(petal.at(np.linspace(0.12, 0.86, 12), side), shade, 0.008)


def ring_of_petals(pen, rng, count, edge, base, length, offset=0.0, **form):
    """Draw petals all around the center, each a little different from the others."""
    for i in rng.permutation(count):
        angle = 2 * np.pi * (i + offset + rng.normal(0, 0.09)) / count
        petal = Petal(angle, length * rng.uniform(0.9, 1.06), bend=rng.normal(0, 0.06), **form)
        tone = rng.normal(0, 7)
        pen.petal(petal, rgb(edge) + tone, rgb(base) + tone)


def seed_disc(pen, rng, radius, count, rim, middle):
    """Draw a domed center with small florets in the spiral of a sunflower."""
    pen.oval((0, 0), radius, 0.6 * rgb(rim))
    for i in range(count, 0, -1):
        r, turn = radius * 0.95 * np.sqrt(i / count), i * 2.39996
        tone = mix(middle, rim, (r / radius) ** 1.5) * rng.uniform(0.8, 1.15)
        pen.oval((r * np.cos(turn), r * np.sin(turn)), 0.75 * radius / np.sqrt(count), tone)


def oxeye_daisy(pen, rng, color):
    """Many narrow, blunt rays around a small domed center."""
    form = {"length": 0.8, "width": rng.uniform(0.17, 0.22), "start": 0.2, "sharp": 0.28}
    ring_of_petals(pen, rng, rng.integers(17, 24), color, mix(color, "#969678", 0.3), **form)
    rim = mix("#e8aa1e", "#7a4216", rng.random())
    seed_disc(pen, rng, rng.uniform(0.25, 0.31), 90, rim, mix(rim, "#fae65a", 0.5 * rng.random()))


def sunflower(pen, rng, color):
    """Two rows of pointed rays around a broad disc of seeds."""
    count, base = rng.integers(15, 20), mix(color, "#963c0a", 0.35)
    form = {"width": rng.uniform(0.24, 0.3), "start": 0.38, "sharp": 1.0, "root": 0.7}
    ring_of_petals(pen, rng, count, 0.88 * color, base, 0.72, **form)
    ring_of_petals(pen, rng, count, color, base, 0.6, offset=0.5, **form)
    rim, middle = mix("#5a3216", "#d09a2c", rng.random()), mix("#786e28", "#3c2414", rng.random())
    seed_disc(pen, rng, rng.uniform(0.42, 0.54), 210, rim, middle)


def water_lily(pen, rng, color):
    """Rings of boat-shaped petals, one on the other, round a tuft of stamens; floating leaves."""
    base, count = mix(color, rng.choice(PETALS[:6]), 0.4), rng.integers(8, 11)
    for i in range(4):
        form = {"width": 0.4 - 0.06 * i, "sharp": 0.8, "offset": 0.5 * i, "root": 0.9}
        ring_of_petals(pen, rng, count, mix(color, base, i / 5), base, 1.02 - 0.2 * i, **form)
    gold = mix("#f4c22c", "#b4641e", rng.random())
    ring_of_petals(pen, rng, 22, gold, 0.7 * gold, 0.26, width=0.06)
    pen.oval((0, 0), 0.09, gold * 1.1)


def tiger_lily(pen, rng, color):
    """Six long, pointed, spotted petals that bend back, and long stamens."""
    base, spot = mix(color, "#faf096", 0.35), mix("#5a1a1e", color, 0.12)
    for row, width in ((0, 0.34), (1, 0.44)):
        for i in range(3):
            angle = (2 * i + row) * np.pi / 3 + rng.normal(0, 0.07)
            bend = rng.choice([-1, 1]) * rng.uniform(0.08, 0.3)
            petal = Petal(angle, rng.uniform(0.95, 1.1), width, sharp=0.85, root=0.75, bend=bend)
            pen.petal(petal, color, base, veins=1, vein_strength=0.3)
            for _ in range(rng.integers(8, 26)):
                place = petal.at(rng.uniform(0.18, 0.72), rng.uniform(-0.72, 0.72))
                pen.oval(place, rng.uniform(0.012, 0.022), spot, 1.5, angle)
    pen.oval((0, 0), 0.08, mix(base, "#6e963c", 0.7))
    for i in range(7):
        reach = Petal(i * 0.9 + rng.normal(0, 0.12), 0.62, 0.1, bend=rng.normal(0, 0.2))
        pen.line(reach.at(np.linspace(0, 1, 12), 0), "#ced68c", 0.022)
        pen.oval(reach.at(1.0, 0), 0.034, mix("#602816", "#aa541e", rng.random()), 2.6, reach.angle)


def wild_pansy(pen, rng, color):
    """Five broad petals that make a face: dark blotches with whiskers and a yellow eye."""
    front = mix(rng.choice(PETALS), color, rng.choice([0.0, 0.4, 0.9]))
    dark, blotch = mix("#30143e", "#6e281e", rng.random() * 0.7), rng.uniform(0.3, 0.62)
    form = {"sharp": 0.42, "root": 0.75}
    for angle, width in ((-1.97, 0.98), (-1.17, 0.98), (2.85, 0.86), (0.29, 0.86), (1.57, 1.14)):
        angle, length = angle + rng.normal(0, 0.05), rng.uniform(0.87, 0.97)
        tint = front if angle > 0 else color
        pen.petal(Petal(angle, length, width, **form), tint, mix(tint, dark, 0.15), veins=5)
        if angle > 0:
            mark = Petal(angle, length * blotch, width * blotch * 0.95, **form)
            pen.petal(mark, mix(dark, tint, 0.15), dark, veins=0)
            for side in np.linspace(-0.6, 0.6, 7):
                whisker = np.linspace(0.08, blotch + rng.uniform(0.08, 0.24), 8)
                pen.line(Petal(angle, length, width, **form).at(whisker, side), dark, 0.016)
    pen.oval((0, 0.06), 0.1, "#f6c428")
    pen.oval((0, 0.02), 0.05, "#aabe46")


def spring_crocus(pen, rng, color):
    """A goblet seen from the side: upright petals round orange stigmas, on a pale tube."""
    tube, spread = mix(color, "#f0ece1", 0.6), rng.uniform(0.22, 0.6)
    pen.shape([(-0.07, 0.6), (0.07, 0.6), (0.12, 9), (-0.12, 9)], 0.85 * tube)
    pen.shape([(-0.07, 0.6), (0.01, 0.6), (0.02, 9), (-0.12, 9)], tube)
    form = {"root": 0.6, "origin": (0, 0.72)}
    for lean in (-1.2 * spread, 1.2 * spread, 0.0):
        pen.petal(Petal(lean - np.pi / 2, 1.62, 0.62, **form), 0.8 * color, 0.7 * color)
    for lean in (-0.2, 0.0, 0.2):
        stigma = Petal(lean - np.pi / 2, 1.5, 0.1, sharp=0.2, origin=(0, 0.72))
        pen.petal(stigma, "#ee8214", "#f0aa28", veins=0)
    for lean in (-spread, spread, rng.normal(0, 0.06)):
        bend, length = -0.14 * np.sign(lean) * (abs(lean) == spread), rng.uniform(1.28, 1.45)
        front = Petal(lean - np.pi / 2, length, 0.68, bend=bend, sharp=0.55, **form)
        pen.petal(front, color, mix(color, tube, 0.5), veins=5, vein_strength=0.3)


# category: drawing, usual colors (numbers in PETALS), largest turn, strongest tilt
FLOWERS = {
    "6": (tiger_lily, [0, 1, 2, 3, 3, 4, 5], 3.1, 0.55),
    "49": (oxeye_daisy, [0, 0, 1, 2, 3, 5, 6], 3.1, 0.45),
    "52": (wild_pansy, [0, 1, 2, 3, 4, 6, 7], 0.7, 0.6),
    "54": (sunflower, [0, 1, 2, 2, 2, 3, 4], 3.1, 0.45),
    "67": (spring_crocus, [0, 1, 2, 3, 5, 6, 7], 0.7, 0.8),
    "73": (water_lily, [0, 1, 2, 3, 5, 5, 6], 3.1, 0.45),
}


def clouds(rng, size, cells):
    """Return soft random patches between -1 and 1, an array of the image's shape."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(grid.resize(size, Image.Resampling.BICUBIC))[..., None]


def background(rng, size, kind):
    """Return a background of the kind, blurred more or less."""
    w, h = size
    first, second = (rgb(c) + rng.normal(0, 14, 3) for c in GROUNDS[kind])
    down = np.linspace(0, 1, h)[:, None, None]
    ground = mix(first, second, down) + 14 * clouds(rng, size, 5)
    if kind == "soil":
        ground = ground + 20 * clouds(rng, size, 24) + 14 * clouds(rng, size, 70)
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for i in range(260 if kind in ("grass", "soil") else 26):
        x, y, r = rng.uniform(0, w), rng.uniform(0, h * 1.2), rng.uniform(0.03, 0.12) * w
        tone = mix(first, second, rng.uniform(-0.3, 1.3)) * rng.uniform(0.8, 1.2)
        if kind == "grass":
            tip = (x + rng.normal(0, 0.05) * w, y - rng.uniform(0.1, 0.3) * h)
            draw.line([(x, y), tip], fill=pixel(tone), width=int(rng.integers(3, 9)))
        elif kind == "soil":
            draw.ellipse((x, y, x + 0.3 * r, y + 0.2 * r), fill=pixel(tone))
        elif kind == "lights":
            glow = mix(tone, rng.choice(PETALS), rng.uniform(0.1, 0.8))
            draw.ellipse((x - r, y - r, x + r, y + r), fill=pixel(glow))
        elif kind == "water":
            draw.ellipse((x - 2 * r, y, x + 2 * r, y + 0.1 * r), fill=pixel(1.1 * tone))
        elif kind == "wall" and i < 8:
            draw.line([(0, i * h / 7 + r), (w, i * h / 7 + r)], fill=pixel(0.75 * second), width=5)
    spread = {"grass": rng.uniform(1, 5), "lights": rng.uniform(4, 14)}.get(kind, 2)
    return image.filter(ImageFilter.GaussianBlur(spread))


def lily_pads(pen, rng):
    """Draw round floating leaves, each with a notch, under and beside a water lily."""
    for _ in range(rng.integers(1, 5)):
        green, turns = mix("#2e5c3c", "#7c9a48", rng.random()), np.linspace(0.2, 6.08, 50)
        edge = np.stack([np.cos(turns), np.sin(turns)], 1) @ rotation(rng.uniform(0, 6.3)).T
        edge, spot = edge * [1.0, 0.6] * rng.uniform(0.6, 1.1), rng.normal(0, (0.9, 0.5))
        pen.shape([spot, *(spot + edge)], 0.7 * green)
        pen.shape([spot, *(spot + 0.96 * edge)], green)
        for vein in edge[4::7]:
            pen.line([spot, spot + 0.85 * vein], 1.2 * green, 0.012)


def leaves(pen, rng, count, spread, depth):
    """Draw leaves of one random form that rise from about `depth` below the flower."""
    green, length, width = rgb("#56843a") + rng.normal(0, 18, 3), *rng.uniform((1, 0.12), (2, 0.6))
    length *= max(1, depth / 2)
    for _ in range(count):
        angle = -np.pi / 2 + rng.normal(0, 0.6)
        foot = (rng.normal(0, spread), depth + rng.uniform(-0.3, 0.6))
        form = {"sharp": 0.9, "bend": rng.normal(0, 0.2), "origin": foot}
        leaf = Petal(angle, length * rng.uniform(0.7, 1.1), width, **form)
        pen.petal(leaf, green * rng.uniform(0.85, 1.1), green * 1.15)


def draw_image(rng, category):
    """Return one image of one to three flowers of the category."""
    flower, colors, most_turn, least_squash = FLOWERS[category]
    final = SIZES[rng.integers(len(SIZES))]
    size = SUPERSAMPLE * final[0], SUPERSAMPLE * final[1]
    kinds = ["water", "lights", "grass"] if flower is water_lily else list(GROUNDS)
    ground, layer = background(rng, size, rng.choice(kinds)), Image.new("RGBA", size)
    light, count = rng.uniform(0, 2 * np.pi), rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15])
    color = rgb(PETALS[rng.choice(colors)]) + rng.normal(0, 10, 3)
    pens = []
    for i in range(count):
        place = (i + 0.5) / count + rng.normal(0, 0.12), rng.normal(0.48, 0.13)
        scale = min(size) * rng.uniform(0.13, 0.42) / count**0.4
        upright = Pen(layer, np.multiply(place, size), scale)
        bottom = (size[1] - upright.center[1]) / scale + 0.5
        if flower is water_lily:
            lily_pads(upright, rng)
        elif flower is spring_crocus:  # it draws its own stem
            leaves(upright, rng, rng.integers(1, 6), 0.4, bottom)
        else:
            stem, sway = np.linspace(0, bottom, 20), rng.normal(0, 0.02)
            upright.line(np.stack([sway * stem**2, stem], 1), "#56803a", 0.07)
            leaves(upright, rng, rng.integers(1, 5), 0.04, min(1.6, bottom))
        turn, axis = rng.uniform(-most_turn, most_turn), rng.uniform(0, np.pi)
        squash = rng.uniform(least_squash, 1)
        pens.append(Pen(layer, upright.center, scale, turn, squash, axis, light))
    for pen in pens:
        flower(pen, rng, mix(color, "#f8f6f0", rng.uniform(0, 0.2)))
    if rng.random() < 0.6:
        leaves(upright, rng, rng.integers(2, 8), 1.2, bottom)  # in front of the flowers
    depth = rng.uniform(0.01, 0.05) * size[0]
    shadow = Image.new("L", size)
    offset = (int(-depth * np.cos(light)), int(-depth * np.sin(light)))
    shadow.paste(layer.getchannel("A").point(lambda a: a * 0.5), offset)
    ground.paste((20, 22, 26), mask=shadow.filter(ImageFilter.GaussianBlur(depth * 0.5)))
    ground.paste(layer, mask=layer)
    return finish(rng, ground.resize(final, Image.Resampling.LANCZOS), light)


def finish(rng, image, light):
    """Apply side light, brightness, a tint, soft shadows, haze, blur and noise."""
    w, h = image.size
    y, x = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    side = (np.cos(light) * x + np.sin(light) * y)[..., None]
    pixels = np.asarray(image) * rng.uniform(0.7, 1.15) * (1 + rng.uniform(0, 0.3) * side)
    pixels = pixels * rng.normal(1, 0.05, 3) * (1 + 0.15 * clouds(rng, image.size, 4))
    pixels = mix(pixels, rng.uniform(90, 200, 3), rng.uniform(0, 0.35))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    noisy = np.asarray(image) + rng.normal(0, rng.uniform(1, 4), (h, w, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def main():
    """Read the command line and write the whole set."""
    parser = argparse.ArgumentParser(description="Draw the sample data set of flowers.")
    folder = Path(__file__).resolve().parent / "sample_flowers"
    parser.add_argument("--out", type=Path, default=folder, help="folder to write to")
    parser.add_argument("--seed", type=int, default=102, help="another seed, other images")
    args = parser.parse_args()
    splits = [split for split, count in COUNTS.items() for _ in range(count)]
    for category in FLOWERS:
        for index, split in enumerate(splits, start=1):
            target = args.out / split / category
            target.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng([args.seed, int(category), index])
            image = draw_image(rng, category)
            image.save(target / f"drawing_{index:03d}.jpg", quality=80)
    print(f"Wrote {len(FLOWERS) * len(splits)} drawings to {args.out}")


if __name__ == "__main__":
    main()
