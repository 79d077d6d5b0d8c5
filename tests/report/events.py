"""What TensorBoard would read in a work directory."""

import struct

from tensorboardX.proto.event_pb2 import Event


def events(workdir):
    """{tag: [(step, value)]} in order, where a value is a number, a histogram or an image."""
    found = {}
    for file in sorted((workdir / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:  # records of length, checksum, event, checksum
            (size,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            for value in event.summary.value:
                content = getattr(value, value.WhichOneof("value"))
                found.setdefault(value.tag, []).append((event.step, content))
    return found
