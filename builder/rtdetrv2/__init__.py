"""The RT-DETRv2 network, as lyuwenyu/RT-DETR `rtdetrv2_pytorch` defines it."""
