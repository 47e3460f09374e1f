"""A web server that predicts the categories of images that are uploaded.

pip install -r requirements-predict.txt flask gunicorn
MODEL=flowers.onnx gunicorn --pythonpath assets --timeout 20 'serve_example:create_app()'
curl -F image=@one.jpg -F image=@two.jpg 'http://127.0.0.1:8000/predict?top_k=5'
curl --data-binary @one.jpg -H 'Content-Type: image/jpeg' http://127.0.0.1:8000/predict
curl http://127.0.0.1:8000/health

gunicorn ends a request after --timeout seconds; `kill -HUP` of its first process loads MODEL again.
To try it without gunicorn: MODEL=flowers.onnx flask --app assets/serve_example run --port 8000
"""

import io
import json
import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path

from flask import Flask, Response, abort, request, send_file
from PIL import Image
from werkzeug.exceptions import HTTPException

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from inference.formats import FORMATS
from inference.results import Result, most_likely
from predict import load_predictor
from system.arguments import whole_number
from system.files import sha256_of
from system.messages import UserError, one_line

MAX_BYTES = 50_000_000  # of a request
MAX_PIXELS = 50_000_000  # of an image
MAX_IMAGES = 16  # of a request
INPUTS = f"send 1 to {MAX_IMAGES} in a form, or one as the body with Content-Type: image/jpeg"


def create_app() -> Flask:
    """Return the server of the checkpoint or ONNX file that the variable MODEL names."""
    path = os.path.abspath(os.environ["MODEL"])
    model = load_predictor(path)
    digest = sha256_of(path)
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses more than twice as many
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES

    def predict_one(name: str, content: bytes, top_k: int) -> dict:
        try:
            image = utils.decode_image(io.BytesIO(content), name, model.image_size)
        except UserError as error:
            app.logger.warning(one_line(f"{request.remote_addr}: {error}"))
            return {"path": name, "error": str(error).removeprefix(f"{name}: ")}
        view = utils.plain_view(image, model.image_size)
        [probs], [novelty] = model.predict_views(view[None])
        best = most_likely(model, probs, float(novelty), top_k=top_k)
        reply = json.loads(FORMATS["jsonl"].row(Result(name, best)))
        return reply | {"resembles_none": best[0].is_unusual}

    @app.post("/predict")
    def predict_images() -> tuple[dict, int]:
        try:
            top_k = whole_number(1)(request.args.get("top_k", "3"))
        except ArgumentTypeError as error:
            abort(400, f"top_k: {error}")
        if request.content_length is None:  # which would be cut at MAX_BYTES
            abort(411, "the header Content-Length is missing")
        files = [(file.filename or "image", file.read()) for file in request.files.getlist("image")]
        if request.data:
            files.append(("image", request.data))
        if not 0 < len(files) <= MAX_IMAGES:
            abort(400, f"image: {len(files)} files; {INPUTS}")
        images = [predict_one(name, content, top_k) for name, content in files]
        status = 200 if any("error" not in image for image in images) else 400
        return {"model": digest, "images": images}, status

    @app.get("/health")
    def health() -> dict:
        names = [model.names.get(category, category) for category in model.categories]
        return {"model": digest, "categories": names, **utils.preprocessing(model.image_size)}

    @app.get("/")
    def page() -> Response:
        file = Path(path).with_suffix(".html")
        return send_file(file) if file.exists() else abort(404)

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> tuple[dict, int]:
        app.logger.warning(one_line(f"{request.remote_addr}: {error.code}: {error.description}"))
        return {"model": digest, "error": error.description}, error.code or 500

    return app
