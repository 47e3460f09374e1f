"""A web server that predicts uploaded images; docs/deployment.md says how to start it."""

import io
import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path

from flask import Flask, Response, abort, request, send_file
from PIL import Image
from werkzeug.exceptions import HTTPException

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import utils
from inference.formats import to_json
from inference.results import Result, most_likely
from predict import load_predictor
from system.arguments import VERSION, whole_number
from system.files import sha256_of
from system.messages import UserError, one_line

MAX_IMAGES = 16  # of a request


def create_app() -> Flask:
    """Return the server of the checkpoint or ONNX file that the variable MODEL names."""
    if "MODEL" not in os.environ:
        print("set MODEL to an ONNX file", file=sys.stderr)
        sys.exit(4)  # which ends gunicorn, too
    path = Path(os.environ["MODEL"]).resolve()
    model = load_predictor(path)
    digest = sha256_of(path)
    Image.MAX_IMAGE_PIXELS = 25_000_000  # Pillow refuses images of more than twice as many
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = 50_000_000  # bytes of a request

    def predict_one(name: str, content: bytes, top_k: int) -> dict:
        try:
            image = utils.decode_image(io.BytesIO(content), name, model.image_size)
        except UserError as error:
            app.logger.warning(one_line(f"{request.remote_addr}: {error}"))
            return {"path": name, "error": str(error).removeprefix(f"{name}: ")}
        [probs], [novelty] = model.predict_views([utils.plain_view(image, model.image_size)])
        best = most_likely(model, probs, float(novelty), top_k=top_k)
        return to_json(Result(name, best)) | {"resembles_none": best[0].is_unusual}

    @app.post("/predict")
    def predict_images() -> tuple[dict, int]:
        try:
            top_k = whole_number(1)(request.args.get("top_k", "3"))
        except ArgumentTypeError as error:
            abort(400, f"top_k: {error}")
        if request.content_length is None:  # which would be cut at MAX_CONTENT_LENGTH
            abort(411, "the header Content-Length is missing")
        if request.mimetype == "multipart/form-data":
            files = [(f.filename or "image", f.read()) for f in request.files.getlist("image")]
        else:  # of any type: curl says that the body is a form
            files = [("image", request.get_data())]
        if not 0 < len(files) <= MAX_IMAGES:
            abort(400, f"image: {len(files)} files; send 1 to {MAX_IMAGES}")
        images = [predict_one(name, content, top_k) for name, content in files]
        status = 200 if any("error" not in image for image in images) else 400
        return {"model": digest, "images": images}, status

    @app.get("/health")
    def health() -> dict:
        return {"model": digest, "version": VERSION, "categories": model.all_names()}

    @app.get("/")
    def page() -> Response:
        if not path.with_suffix(".html").exists():
            abort(404, f"there is no {path.stem}.html beside {path.name}")
        return send_file(path.with_suffix(".html"))

    @app.errorhandler(HTTPException)
    def refuse(error: HTTPException) -> tuple[dict, int]:
        app.logger.warning(one_line(f"{request.remote_addr}: {error.code}: {error.description}"))
        return {"model": digest, "error": error.description}, error.code or 500

    return app
