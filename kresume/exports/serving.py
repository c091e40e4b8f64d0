"""Writes serving instructions and configuration files beside the versions of an export.

write_notes(Path("serving/flowers"), Path("serving/flowers/3"), record)

`SERVING.md` is for readers. Its command passes `models.config` and `batching.config` to the server. They lie in the
model's folder, in which a server reads only numbered folders.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kresume.addresses import address_of, is_stage, public
from kresume.storage import atomic
from kresume.storage.model_folders import versions_in

IMAGE = "tensorflow/serving"
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
DELAY_MICROSECONDS = 2000


def model_config(name: str) -> str:
    """Returns the server's `--model_config_file`: this model, newest version (two while switching)."""
    return (
        "model_config_list {\n"
        "  config {\n"
        f"    name: {json.dumps(name)}\n"
        f"    base_path: {json.dumps(f'/models/{name}')}\n"
        '    model_platform: "tensorflow"\n'
        "    model_version_policy { latest { num_versions: 1 } }\n"
        "  }\n"
        "}\n"
    )


def batching_config() -> str:
    """Returns the server's `--batching_parameters_file`."""
    sizes = "\n".join(f"allowed_batch_sizes: {size}" for size in BATCH_SIZES)
    return (
        f"max_batch_size {{ value: {BATCH_SIZES[-1]} }}\n"
        f"batch_timeout_micros {{ value: {DELAY_MICROSECONDS} }}\n"
        "max_enqueued_batches { value: 100 }\n"
        "num_batch_threads { value: 4 }\n"
        f"{sizes}\n"
    )


def command(name: str, directory: Path) -> str:
    """Returns the command that serves a model's folder, REST on 8501 and gRPC on 8500."""
    folder, first = str(directory.resolve()), ""
    if is_stage(directory):  # the server's container reads a disk
        folder = f"/srv/{directory.name}"
        first = f"# first copy {address_of(directory)} to {folder} on the server\n"
    return (
        f"{first}docker run --rm -p 8500:8500 -p 8501:8501 \\\n"
        f"  -v {shlex.quote(f'{folder}:/models/{name}:ro')} {IMAGE} \\\n"
        f"  --model_config_file=/models/{name}/models.config --model_config_file_poll_wait_seconds=60 \\\n"
        f"  --enable_batching=true --batching_parameters_file=/models/{name}/batching.config"
    )


def write_notes(directory: Path, made: Path, record: Mapping[str, Any]) -> str:
    """Writes `SERVING.md`, `models.config` and `batching.config`, and returns the lines to print.

    Args:
        directory: the model's folder.
        made: the version that was just made.
        record: its `export.json`.
    """
    name = record["options"]["name"]
    atomic.write_text(directory / "models.config", model_config(name))
    atomic.write_text(directory / "batching.config", batching_config())
    atomic.write_text(directory / "SERVING.md", public(text(directory, made, record)))
    lines = [f"signature: {line}" for line in _signatures(record)]
    lines += [
        f"warm-up: {record['warmup']} requests with pictures that it was compared on",
        f"model config ({directory / 'models.config'}):",
    ]
    lines += [f"  {line}" for line in model_config(name).splitlines()]
    lines += [
        f"to serve it (see {directory / 'SERVING.md'}):",
        *(f"  {line}" for line in command(name, directory).splitlines()),
    ]
    return "\n".join(lines)


def _signatures(record: Mapping[str, Any]) -> list[str]:
    def words(name: str, tensor: Mapping[str, Any]) -> str:
        shape = ", ".join("any" if size is None else str(size) for size in tensor["shape"])
        return f"{name} {tensor['dtype']} ({shape})"

    return [
        f"{name}: {words(signature['input']['name'], signature['input'])} -> "
        + ", ".join(words(output, tensor) for output, tensor in signature["outputs"].items())
        for name, signature in record["signatures"].items()
    ]


def _rest(record: Mapping[str, Any]) -> str:
    name = record["options"]["name"]
    given = next(iter(record["signatures"].values()))["input"]
    if given["dtype"] != "string":
        return (
            f"The input `{given['name']}` expects numbers, as clients of the replaced model send them. "
            f'`POST http://localhost:8501/v1/models/{name}:predict` with `{{"instances": [...]}}`.'
        )
    return f"""```python
import base64, json, urllib.request

encoded = base64.b64encode(open("picture.jpg", "rb").read()).decode()
body = json.dumps({{"instances": [{{"{given["name"]}": {{"b64": encoded}}}}]}}).encode()
answer = urllib.request.urlopen("http://localhost:8501/v1/models/{name}:predict", body)
print(json.load(answer)["predictions"][0])
```"""


def _source(record: Mapping[str, Any]) -> str:
    """Describes what was exported."""
    source = record["source"]
    what = "a checkpoint" if source["run"] is None else f"run {source['run']}, generation {source['generation']}"
    return f"{what}, step {source['step']}"


def _verified(record: Mapping[str, Any]) -> str:
    """Describes the comparison with the model."""
    parity = record["parity"]
    compared = (
        "only labels were compared"
        if parity["max_difference"] is None
        else f"largest difference of a score {parity['max_difference']:.1e}"
    )
    text = f"{parity['images']} {parity['of']}: {compared}, top-1 agreement {100 * parity['agreement']:.1f} %."
    if parity["accuracy"] is not None:
        model, export = (100 * share for share in parity["accuracy"])
        text += f"\nAccuracy on them: {model:.2f} % for the model, {export:.2f} % for the export."
    return text


def _behind(directory: Path, made: Path) -> str:
    """Warns if the folder holds a version with a higher number, which the server answers with."""
    newest = max(versions_in(directory), default=0)
    if int(made.name) >= newest:
        return ""
    return (
        f"\n**This folder also has version {newest}: the server keeps using it, because it has the highest number.** To\n"
        "roll back, export the older run again without `--version`.\n"
    )


def _bad_images(record: Mapping[str, Any]) -> str:
    """Describes what happens to an image that cannot be decoded."""
    if record["options"]["on_bad_image"] == "flag":
        return (
            "An image that cannot be decoded gets\n`class_index` -1 and a text in `error`; the other images of the request "
            "are answered."
        )
    return (
        "An image that cannot be decoded makes its\nrequest fail with its index and the problem. If the server joins "
        "requests of different clients into batches,\nexport with `--on-bad-image flag` instead."
    )


def _sizes(record: Mapping[str, Any]) -> str:
    """Describes the difference between decoded pictures and bytes, for a signature that takes pictures."""
    if not any(signature["input"]["dtype"] == "uint8" for signature in record["signatures"].values()):
        return ""
    return (
        "A picture that a client decodes (uint8) is resized from its full size. A JPEG sent as bytes is decoded at a half, a\n"
        "quarter or an eighth of its size if that is enough, as in training with `area`. So the scores of JPEGs of twice the\n"
        "model's size or more differ between the two: by 0.01 for large photos, by up to 0.1 for small ones.\n"
    )


def text(directory: Path, made: Path, record: Mapping[str, Any]) -> str:
    """Returns the content of `SERVING.md`."""
    name, labels, warm = record["options"]["name"], record["labels"], record["warmup"]
    shown = ", ".join(labels[:20]) + (", …" if len(labels) > 20 else "")
    most, delay = BATCH_SIZES[-1], DELAY_MICROSECONDS / 1000
    signatures = "\n".join(f"- `{line}`" for line in _signatures(record))
    return f"""# Serving {name}

Version {made.name}, written {record["created"]} by kresume {record["kresume"]} from {_source(record)}.
{_behind(directory, made)}Verified by TensorFlow alone on {_verified(record)}

## Start the server

```bash
{command(name, directory)}
```

`models.config` names the model and `batching.config` lets the server join requests into batches of up to {most},
waiting at most {delay:g} ms; both files are in this folder:

```text
{model_config(name)}```

```text
{batching_config()}```

An export into this folder adds a version. The server loads it beside the old one, runs its {warm} warm-up requests, answers
with it from then on, and unloads the old one, without a restart. To roll back, export the older run again.

## Inputs and outputs

{signatures}

Labels, in the order of `scores`: {shown} (`{made.name}/assets/labels.txt`). `labels` are the best ones, best first.
JPEG, PNG, GIF (first frame, if it is the whole screen), BMP and WebP are decoded in the graph, rotated by their EXIF
orientation, and prepared by the functions that training used. {_bad_images(record)}
A single file that is damaged in its middle fails with TensorFlow's own message.
{_sizes(record)}
## Send a request

{_rest(record)}

gRPC on port 8500 takes a `PredictRequest` for the model `{name}` and the signature `{next(iter(record["signatures"]))}`.
`{made.name}/export.json` holds the digests of the snapshot, of the images and of every file.
"""
