"""Checkpoints made byte by byte: what no library would write, beside small honest ones."""

import json

INDEX = "model.safetensors.index.json"


def entry(begin, end, shape=None, dtype="F32"):
    """A tensor's entry in a header; by default a vector of float32 that fills its bytes."""
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


def weight_file(header, data=b"", *, length=None):
    """A safetensors file of a header (a dict, JSON text or bytes) and data; `length` is what its length field claims."""
    if isinstance(header, dict):
        header = json.dumps(header)
    text = header.encode() if isinstance(header, str) else header
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one_tensor(name="a.weight", size=8):
    """A good file of one float32 vector."""
    return weight_file({name: entry(0, size)}, bytes(size))


def folder(path, files, *, weight_map=None, config=None):
    """A model folder of these files (name to bytes, text, or a value written as JSON), with index and config."""
    path.mkdir(parents=True, exist_ok=True)
    files = {"config.json": {"model_type": "toy", "architectures": ["Toy"]} if config is None else config, **files}
    if weight_map is not None:
        files[INDEX] = {"metadata": {}, "weight_map": weight_map}
    for name, content in files.items():
        target = path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, (bytes, str)):
            content = json.dumps(content)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
