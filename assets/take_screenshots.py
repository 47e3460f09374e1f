"""Take the screenshots of README.md: labels_page.png and classifier_page.png, in Chromium.

    python assets/take_screenshots.py labels.html flowers.html image.jpg [image.jpg ...]

labels.html is of --check_labels on Oxford-102, flowers.html of --to_html with --web_runtime. It
needs Debian's packages chromium and chromium-driver, and selenium (PyPI).
"""

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ASSETS = Path(__file__).resolve().parent
WIDTH, HEIGHT = 900, 1400  # pixels of the window


def save(browser: webdriver.Chrome, name: str) -> None:
    """Save what the window shows, without the empty rows at its end."""
    image = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    last = max(
        y for y in range(image.height) if image.crop((0, y, WIDTH, y + 1)).getcolors(1) is None
    )
    image.crop((0, 0, image.width, last + 20)).save(ASSETS / name, optimize=True)


def main(labels: str, classifier: str, *images: str) -> None:
    """Open the two pages and save what they show."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(flag)
    options.add_argument(f"--window-size={WIDTH},{HEIGHT}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    browser.get(Path(labels).resolve().as_uri())
    browser.execute_script("byId('about').textContent = ''")  # a path on this machine
    browser.find_element(By.XPATH, "//button[starts-with(., 'Suspect')]").click()
    save(browser, "labels_page.png")
    browser.get(Path(classifier).resolve().as_uri())
    paths = [str(Path(image).resolve()) for image in images]
    browser.find_element(By.ID, "choose").send_keys("\n".join(paths))
    WebDriverWait(browser, 120).until(
        lambda _: len(browser.find_elements(By.CSS_SELECTOR, ".result ol")) == len(images)
    )
    save(browser, "classifier_page.png")
    browser.quit()


if __name__ == "__main__":
    main(*sys.argv[1:])
