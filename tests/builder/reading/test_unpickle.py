"""What the reader makes of objects that are neither tensors nor containers."""

import collections

import torch

from builder.reading.unpickle import StandIn, load


class Annotated(torch.Tensor):
    """A tensor of a class of the training program."""


class Settings:
    """An object of the training program."""

    def __init__(self):
        self.rate = 0.1


def saved(content, path):
    torch.save(content, path)
    return load(path)


def test_a_tensor_of_another_class_is_read_as_a_tensor(tmp_path):
    values = torch.arange(6.0).reshape(2, 3)
    read = saved({"weight": values.as_subclass(Annotated)}, tmp_path / "file.pth")["weight"]
    assert type(read) is torch.Tensor
    assert torch.equal(read, values)


def test_a_dtype_is_itself(tmp_path):
    assert saved({"dtype": torch.bfloat16}, tmp_path / "file.pth") == {"dtype": torch.bfloat16}


def test_a_foreign_object_is_named_and_only_a_network_is_a_module(tmp_path):
    read = saved({"settings": Settings(), "net": torch.nn.Linear(2, 3)}, tmp_path / "file.pth")
    assert all(isinstance(value, StandIn) for value in read.values())
    assert read["settings"].origin.endswith(".Settings")
    assert read["net"].origin == "torch.nn.modules.linear.Linear"
    assert (read["settings"].is_module, read["net"].is_module) == (False, True)


def test_plain_containers_are_themselves(tmp_path):
    content = collections.OrderedDict(a=(1, 2.5), b={"x", "y"}, c=torch.Size([2, 3]))
    assert saved(content, tmp_path / "file.pth") == {"a": (1, 2.5), "b": {"x", "y"}, "c": (2, 3)}
