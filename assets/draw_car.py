"""Draw assets/car.jpg, an image of none of the sample's categories.

Make it again with:  python assets/draw_car.py
"""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT = 640, 480
SKY, ROAD, BODY, SHADE, GLASS, TIRE, METAL = (
    "#a8c8e8 #6a6a6e #b02a30 #7c1a20 #cfe0ea #202024 #c8ccd0".split()
)


def draw_car() -> Image.Image:
    """Return a red car on a road, seen from its side, 320 x 240 pixels."""
    image = Image.new("RGB", (WIDTH, HEIGHT), SKY)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 330, WIDTH, HEIGHT), ROAD)
    for left in range(20, WIDTH, 160):
        draw.rectangle((left, 430, left + 80, 438), "white")
    draw.ellipse((70, 375, 570, 405), "#48484c")  # shadow
    draw.polygon([(190, 240), (250, 150), (420, 150), (490, 240)], BODY)
    draw.polygon([(208, 238), (258, 162), (328, 162), (328, 238)], GLASS)
    draw.polygon([(342, 238), (342, 162), (414, 162), (468, 238)], GLASS)
    draw.rounded_rectangle((70, 235, 570, 350), 40, BODY)
    draw.rectangle((70, 310, 570, 350), SHADE)
    draw.line((335, 240, 335, 345), SHADE, 4)
    draw.rectangle((350, 262, 380, 270), METAL)  # handle
    draw.ellipse((545, 255, 572, 285), "#fff4c0")  # light
    for x in (180, 460):
        for radius, color in ((56, TIRE), (30, METAL), (10, TIRE)):
            draw.ellipse((x - radius, 345 - radius, x + radius, 345 + radius), color)
    return image.resize((WIDTH // 2, HEIGHT // 2)).filter(ImageFilter.GaussianBlur(0.5))


if __name__ == "__main__":
    draw_car().save(Path(__file__).resolve().parent / "car.jpg", quality=85)
