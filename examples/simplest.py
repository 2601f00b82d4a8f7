"""The simplest client: python examples/simplest.py IMAGE [HOST:PORT]"""

import pathlib
import sys

import numpy as np
import tritonclient.grpc as triton

path, url = (*sys.argv[1:], "localhost:8001")[:2]
client = triton.InferenceServerClient(url)
image = triton.InferInput("image", [1, 1], "BYTES")
image.set_data_from_numpy(np.array([[pathlib.Path(path).read_bytes()]], dtype=object))
answer = client.infer("codetr", [image], parameters={"score_threshold": 0.3})
boxes, scores, labels = (answer.as_numpy(name)[0] for name in ("boxes", "scores", "labels"))
for index in range(answer.as_numpy("num_detections").item()):
    print(f"class {labels[index]}, score {scores[index]:.2f}, box {boxes[index].round(1).tolist()}")
