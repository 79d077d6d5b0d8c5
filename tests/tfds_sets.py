"""TFDS sets made by hand: what `tfds.builder(...).download_and_prepare()` leaves in a folder."""

import io
import json

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from ml_collections import ConfigDict
from PIL import Image

from cka_sr_jax.data import load_dataset

FEATURES = "tensorflow_datasets.core.features"


def image_feature(*shape, dtype="uint8"):
    dimensions = ["-1" if size is None else str(size) for size in shape]
    content = {"dtype": dtype, "shape": {"dimensions": dimensions}}
    return {"pythonClassName": f"{FEATURES}.image_feature.Image", "image": content}


def class_feature(num_classes):
    content = {"numClasses": str(num_classes)}
    return {"pythonClassName": f"{FEATURES}.class_label_feature.ClassLabel", "classLabel": content}


def tensor_feature(dtype, *dimensions):
    shape = {"dimensions": [str(size) for size in dimensions]} if dimensions else {}
    content = {"shape": shape, "dtype": dtype, "encoding": "none"}
    return {"pythonClassName": f"{FEATURES}.tensor_feature.Tensor", "tensor": content}


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(image):
    buffer = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "JPEG")
    return buffer.getvalue()


def write_set(
    folder, splits, features=None, *, supervised=True, keys=("image", "label"), encode=png
):
    """A prepared folder NAME/VERSION, one array_record file per split of (image, label) pairs."""
    from tensorflow_datasets.proto import tf_example_pb2

    folder.mkdir(parents=True)
    image_key, label_key = keys
    name = next(part for part in folder.parts if part.startswith(("tiny", "cifar")))
    for split, examples in splits.items():
        file = folder / f"{name}-{split}.array_record-00000-of-00001"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for image, label in examples:
            example = tf_example_pb2.Example()
            example.features.feature[image_key].bytes_list.value.append(encode(image))
            example.features.feature[label_key].int64_list.value.extend(np.atleast_1d(label))
            writer.write(example.SerializeToString())
        writer.close()
    features = features or {image_key: image_feature(4, 3, 3), label_key: class_feature(5)}
    named = {"featuresDict": {"features": features}}
    named["pythonClassName"] = f"{FEATURES}.features_dict.FeaturesDict"
    (folder / "features.json").write_text(json.dumps(named))
    info = {
        "fileFormat": "array_record",
        "name": name,
        "version": folder.name,
        "splits": [
            {
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "name": split,
                "numBytes": "1",
                "shardLengths": [str(len(examples))] if examples else [],
            }
            for split, examples in splits.items()
        ],
    }
    if supervised:
        info["supervisedKeys"] = {"tuple": {"items": [{"featureKey": key} for key in keys]}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def examples(count, seed=0, shape=(4, 3, 3)):
    rng = np.random.default_rng(seed)
    return [(rng.integers(0, 256, shape).astype(np.uint8), i % 5) for i in range(count)]


def photographs(count, seed=0, classes=5):
    """Smooth color images of different sizes, 20 to 59 pixels a side, and their labels."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        size = tuple(rng.integers(20, 60, 2).tolist())
        coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3)).astype(np.uint8))
        found.append((np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)), i % classes))
    return found


def write_photographs(folder, classes=5, encode=jpeg, **counts):
    """A prepared set of `photographs` as JPEG, so many in each split."""
    features = {"image": image_feature(None, None, 3), "label": class_feature(classes)}
    splits = {
        split: photographs(count, seed, classes)
        for seed, (split, count) in enumerate(counts.items())
    }
    return write_set(folder, splits, features, encode=encode)


def streamed_arguments(directory):
    """Those of launch.py for a run on the streamed set "tiny"."""
    return (
        "--config.data.name=tiny", f"--config.data.dir={directory}", "--config.data.stream=True",
        "--config.data.crop=8", "--config.data.mean=(0.5, 0.5, 0.5)", "--config.data.flip=True",
        "--config.data.std=(0.25, 0.25, 0.25)", "--config.train.batch_size=16",
        "--config.model.options.hidden=(16, 16)", "--config.penalty.samples=4",
    )  # fmt: skip


def load(directory, cache, name="tiny", validation=0.0):
    fields = {"name": name, "dir": str(directory), "cache_dir": str(cache)}
    return load_dataset(ConfigDict(fields | {"validation": validation, "downsample": 1}))


def assert_holds(images, labels, expected):
    np.testing.assert_array_equal(images, np.stack([image for image, _ in expected]))
    np.testing.assert_array_equal(labels, [label for _, label in expected])
