"""What Triton's own ONNX backend would do with model.onnx, for its python backend: the same names, shapes and types.

Runs inside the server, as `model.py` beside the file.
"""

import json
import os
import time

import numpy as np
import onnxruntime
import triton_python_backend_utils as backend


class TritonPythonModel:
    """One tower."""

    def initialize(self, args):
        """Load the file of this version."""
        folder = os.path.join(args['model_repository'], args['model_version'])
        self.session = onnxruntime.InferenceSession(
            os.path.join(folder, 'model.onnx'), providers=['CPUExecutionProvider']
        )
        self.names = [one['name'] for one in json.loads(args['model_config'])['input']]

    def execute(self, requests):
        """Each request by itself; a picture that is red all over takes long, for the tests of deadlines."""
        replies = []
        for request in requests:
            inputs = {name: backend.get_input_tensor_by_name(request, name).as_numpy() for name in self.names}
            if 'pixels' in inputs and (inputs['pixels'] == [255, 0, 0]).all():
                time.sleep(10)
            vectors = self.session.run(None, inputs)[0].astype(np.float32)
            replies.append(backend.InferenceResponse([backend.Tensor('vectors', vectors)]))
        return replies
