"""A web server that predicts the category of an image that is uploaded.

pip install -r requirements-predict.txt flask
python assets/serve_example.py flowers.onnx
curl -F image=@image.jpg http://127.0.0.1:8000/predict

Flask's own server is for trying it out: for the public, `waitress.serve(app)` replaces `app.run`.
"""

import os
import sys
import tempfile

from flask import Flask, Response, request

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from inference.formats import FORMATS
from inference.results import Result
from predict import load_predictor, predict
from system.messages import UserError

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 50_000_000  # bytes of an upload; a larger one gets status 413
model = load_predictor(sys.argv[1])  # requests share it


@app.post("/predict")
def predict_upload() -> Response:
    upload = request.files["image"]  # without it, status 400
    name = upload.filename or ""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "image")
        upload.save(path)
        try:
            [predictions] = predict(model, [path], top_k=3)
            result = Result(name, predictions)
        except UserError as error:
            result = Result(name, [], str(error).removeprefix(f"{path}: "))
    text = FORMATS["jsonl"].row(result)
    return Response(text, 400 if result.error else 200, mimetype="application/json")


if __name__ == "__main__":
    app.run(port=int(sys.argv[2]) if len(sys.argv) > 2 else 8000)
