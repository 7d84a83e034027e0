"""A model runtime for MLServer: onnxruntime, one thread. Runs in MLServer's own environment."""

import json
from pathlib import Path

import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class OnnxModel(MLModel):
    """One model; MLServer batches what it gets and calls ``predict`` in its worker processes."""

    async def load(self):
        folder = Path(self.settings.parameters.uri)
        facts = json.loads((folder / "models.json").read_text())[self.name]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = folder / f"{self.name}.onnx"
        self._session = onnxruntime.InferenceSession(str(path), options)
        self._outputs = list(facts["outputs"])
        return True

    async def predict(self, payload):
        inputs = {each.name: NumpyCodec.decode_input(each) for each in payload.inputs}
        values = self._session.run(self._outputs, inputs)
        pairs = zip(self._outputs, values, strict=True)
        outputs = [NumpyCodec.encode_output(name, value) for name, value in pairs]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)
