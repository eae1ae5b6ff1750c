"""Read broken Keras files one after the other: ``python fuzzed.py KIND FIRST END FOLDER``.

Prints the number of each file before it is read, and "ok" or "refused" after
it. Ends by SIGALRM when one takes too long, and as HDF5 has it when that
crashes: `test_weight_files_fuzz` goes on with the file after it.
"""

import random
import signal
import sys
import zipfile
from pathlib import Path

from keras_files import write_archive, write_by_class, write_by_layer
from mutations import mutated
from published import biases, keras_layers, state

from rn50feat.errors import WeightsError
from rn50feat.model.weight_files import keras, names

WRITERS = {
    "by layer": lambda path, layers: write_by_layer(path, layers, whole=True),
    "by class": write_by_class,
    "archive": lambda path, layers: write_archive(path, layers, compression=zipfile.ZIP_DEFLATED),
}

if __name__ == "__main__":
    kind, path = sys.argv[1], Path(sys.argv[4], "file")
    names.WIDTH = 1
    tensors = state(narrower=64)
    shapes = {name: value.shape for name, value in tensors.items()}
    WRITERS[kind](path, keras_layers(tensors, biases(tensors)))
    data = path.read_bytes()
    for number in range(int(sys.argv[2]), int(sys.argv[3])):
        path.write_bytes(mutated(data, data[len(data) // 3 :], random.Random(f"{kind}{number}")))
        print(number, flush=True)
        signal.alarm(15)
        try:
            assert {name: value.shape for name, value in keras.read(path).tensors.items()} == shapes
            print("ok", flush=True)
        except WeightsError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
            print("refused", flush=True)
